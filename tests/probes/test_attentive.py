"""Attentive probes: the pooling by hand, one telling token among many, determinism."""

import torch

from nbhelpers.probes import fit_attentive, fit_linear
from nbhelpers.probes.attentive import AttentiveProbe
from nbhelpers.probes.layers import accuracy


def needle(n, seed, tokens=16):
    """One token in 16 is marked (last feature) and carries the class; the others carry random classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (n, tokens), generator=generator)
    place = torch.randint(tokens, (n,), generator=generator)
    x = torch.nn.functional.one_hot(classes, 5).float()
    x[torch.arange(n), place, 4] = 1
    return x + 0.01 * torch.randn(x.shape, generator=generator), classes[torch.arange(n), place]


@torch.no_grad()
def test_forward_against_loops():
    torch.manual_seed(0)
    probe = AttentiveProbe(width=3, classes=2, queries=2).double()
    probe.mean += 0.5
    probe.std *= 2
    probe.queries.mul_(50)
    tokens = torch.randn(4, 5, 3).double()
    for image, logits in zip(tokens, probe.float()(tokens).double(), strict=True):
        pooled = []
        for query in probe.queries.double():
            x = [(token - 0.5) / 2 for token in image]
            weights = torch.stack([(query @ t / 3**0.5).exp() for t in x])
            pooled += [sum(w * t for w, t in zip(weights / weights.sum(), x, strict=True))]
        expected = probe.head.weight.double() @ torch.cat(pooled) + probe.head.bias.double()
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_finds_the_telling_token_and_repeats_itself():
    (x, y), (x_test, y_test) = needle(2000, 0), needle(500, 1)
    probe = fit_attentive(x.half(), y, x_test.half(), y_test, epochs=15, seed=3)
    torch.testing.assert_close(probe.mean, x.half().float().mean((0, 1)))
    torch.testing.assert_close(probe.std, x.half().float().flatten(0, 1).std(0))
    reached = (probe.predict(x_test) == y_test).double().mean()
    linear = fit_linear(x.mean(1), y, x_test.mean(1), y_test, [1.0])
    pooled = accuracy(linear.predict(x_test.mean(1)), y_test)["value"]
    assert reached > 0.95 > 0.6 > pooled
    first, again, other = (fit_attentive(x, y, x_test, y_test, epochs=1, seed=s).queries for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
