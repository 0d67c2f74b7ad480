// A Vision Transformer in plain typed arrays, and what the book measures of it. It runs in a Worker made of
// this text, so that the page stays responsive, and under node in the tests.
//
// Shapes are in the book's letters: L blocks, H heads, N patch tokens, D width; T = 1 + N with the class token.
const ownPictureCore = (() => {
  // Every half-precision number in single precision: with 65,536 of them, decoding is a look-up.
  const SINGLE = Float32Array.from({ length: 65536 }, (_, half) => {
    const [sign, exponent, fraction] = [half >> 15 ? -1 : 1, (half >> 10) & 31, (half & 1023) / 1024];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });

  // A weights file's content with its tensors as arrays by PyTorch's names. Bytes are little-endian.
  function decode(content) {
    const text = atob(content.data);
    const values = new Float32Array(text.length / 2);
    for (let i = 0; i < values.length; i++) {
      values[i] = SINGLE[text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8)];
    }
    const tensors = {};
    let start = 0;
    for (const [name, length] of content.tensors) {
      tensors[name] = values.subarray(start, start + length);
      start += length;
    }
    const { data, ...about } = content;
    return { ...about, tensors };
  }

  // How much of each of `side` pixels lies in each of `size` equal parts of a line: size lists of [pixel, share].
  function shares(side, size) {
    const step = side / size;
    return Array.from({ length: size }, (_, part) => {
      const [from, to] = [part * step, Math.min((part + 1) * step, side)];
      const list = [];
      for (let pixel = Math.floor(from); pixel < to; pixel++) {
        list.push([pixel, (Math.min(pixel + 1, to) - Math.max(pixel, from)) / (to - from)]);
      }
      return list;
    });
  }

  // Area averaging: a square picture (side side 4, as a canvas gives it) -> whole numbers (size size 3).
  // Rounded, because the encoders were trained on pictures of 8 bits a channel.
  function shrink(rgba, side, size) {
    const parts = shares(side, size);
    const narrow = new Float64Array(side * size * 3); // one direction after the other: far fewer terms
    for (let row = 0; row < side; row++) {
      parts.forEach((list, column) => {
        for (const [pixel, share] of list) {
          for (let c = 0; c < 3; c++) {
            narrow[(row * size + column) * 3 + c] += share * rgba[(row * side + pixel) * 4 + c];
          }
        }
      });
    }
    const small = new Float64Array(size * size * 3);
    parts.forEach((list, row) => {
      for (const [pixel, share] of list) {
        for (let i = 0; i < size * 3; i++) small[row * size * 3 + i] += share * narrow[pixel * size * 3 + i];
      }
    });
    return Uint8Array.from(small, (value) => Math.round(value));
  }

  // Colours (S S 3) as the encoder was trained to see them (3 S S).
  function normalise(pixels, model) {
    const area = model.size ** 2;
    const x = new Float32Array(3 * area);
    for (let c = 0; c < 3; c++) {
      for (let i = 0; i < area; i++) x[c * area + i] = (pixels[3 * i + c] / 255 - model.mean[c]) / model.std[c];
    }
    if (!model.standardised) return x;
    for (let c = 0; c < 3; c++) {
      const channel = x.subarray(c * area, (c + 1) * area);
      const mean = channel.reduce((sum, value) => sum + value, 0) / area;
      channel.forEach((value, i) => (channel[i] = value - mean));
    }
    const deviation = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
    return x.map((value) => value / Math.max(deviation, 1e-3));
  }

  // Image (3 S S) -> patches (N 3PP) in the order of a convolution's weights (D 3 P P).
  function patches(x, { size, patch }) {
    const grid = size / patch;
    const out = new Float32Array(x.length);
    let at = 0;
    for (let token = 0; token < grid * grid; token++) {
      const [top, left] = [Math.floor(token / grid) * patch, (token % grid) * patch];
      for (let c = 0; c < 3; c++) {
        for (let i = 0; i < patch; i++) {
          for (let j = 0; j < patch; j++) out[at++] = x[(c * size + top + i) * size + left + j];
        }
      }
    }
    return out;
  }

  // x (rows I) by a weight as PyTorch stores it (O I), plus bias (O) -> (rows O).
  function linear(x, weight, bias) {
    const outputs = bias.length;
    const inputs = weight.length / outputs;
    const y = new Float32Array((x.length / inputs) * outputs);
    let at = 0;
    for (let start = 0; start < x.length; start += inputs) {
      const row = x.subarray(start, start + inputs);
      for (let o = 0; o < outputs; o++) {
        // Four sums, since each addition would have to wait for the one before it.
        let [a, b, c, d] = [bias[o], 0, 0, 0];
        for (let i = 0, w = o * inputs; i < inputs; i += 4, w += 4) {
          a += row[i] * weight[w];
          b += row[i + 1] * weight[w + 1];
          c += row[i + 2] * weight[w + 2];
          d += row[i + 3] * weight[w + 3];
        }
        y[at++] = a + b + c + d;
      }
    }
    return y;
  }

  // LayerNorm of each row of x (rows D).
  function layerNorm(x, weight, bias, eps) {
    const width = weight.length;
    const y = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let [mean, square] = [0, 0];
      for (let i = 0; i < width; i++) mean += x[start + i] / width;
      for (let i = 0; i < width; i++) square += (x[start + i] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(square + eps);
      for (let i = 0; i < width; i++) y[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
    }
    return y;
  }

  // Error function to 1.5e-7 (Abramowitz and Stegun 7.1.26); timm's GELU is the exact one, not tanh's.
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const series =
      ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return Math.sign(x) * (1 - series * Math.exp(-x * x));
  }

  const gelu = (x) => x.map((value) => 0.5 * value * (1 + erf(value * Math.SQRT1_2)));

  // Self-attention of one block: qkv (T 3D) -> outputs of all heads (T D). `maps` (H N N) is filled with the
  // attention among the patch tokens: a softmax over their keys alone, as everywhere in the book.
  function attend(qkv, heads, width, maps) {
    const tokens = qkv.length / (3 * width);
    const [d, n] = [width / heads, tokens - 1];
    const out = new Float32Array(tokens * width);
    const weights = new Float64Array(tokens);
    for (let head = 0; head < heads; head++) {
      for (let query = 0; query < tokens; query++) {
        const q = query * 3 * width + head * d;
        let largest = -Infinity;
        for (let key = 0; key < tokens; key++) {
          const k = key * 3 * width + width + head * d;
          let score = 0;
          for (let i = 0; i < d; i++) score += qkv[q + i] * qkv[k + i];
          weights[key] = score / Math.sqrt(d);
          largest = Math.max(largest, weights[key]);
        }
        let all = 0;
        for (let key = 0; key < tokens; key++) all += weights[key] = Math.exp(weights[key] - largest);
        const among = all - weights[0];
        for (let key = 0; key < tokens; key++) {
          if (query && key) maps[(head * n + query - 1) * n + key - 1] = weights[key] / among;
          const v = key * 3 * width + 2 * width + head * d;
          const share = weights[key] / all;
          for (let i = 0; i < d; i++) out[query * width + head * d + i] += share * qkv[v + i];
        }
      }
    }
    return out;
  }

  // The encoder as timm computes it: maps (L H N N), and the patch tokens of each block's output (L N D).
  function forward(model, pixels) {
    const { tensors, width, depth, heads, eps } = model;
    const n = (model.size / model.patch) ** 2;
    const layer = (name, x) => linear(x, tensors[`${name}.weight`], tensors[`${name}.bias`]);
    const norm = (name, x) => layerNorm(x, tensors[`${name}.weight`], tensors[`${name}.bias`], eps);
    const add = (y) => y.forEach((value, i) => (x[i] += value));

    const x = new Float32Array((1 + n) * width); // the residual stream (T D)
    x.set(tensors.cls_token);
    x.set(layer("patch_embed.proj", patches(normalise(pixels, model), model)), width);
    add(tensors.pos_embed);
    const maps = new Float32Array(depth * heads * n * n);
    const tokens = new Float32Array(depth * n * width);
    for (let l = 0; l < depth; l++) {
      const block = `blocks.${l}.`;
      const own = maps.subarray(l * heads * n * n, (l + 1) * heads * n * n);
      const qkv = layer(`${block}attn.qkv`, norm(`${block}norm1`, x));
      add(layer(`${block}attn.proj`, attend(qkv, heads, width, own)));
      add(layer(`${block}mlp.fc2`, gelu(layer(`${block}mlp.fc1`, norm(`${block}norm2`, x)))));
      tokens.set(x.subarray(width), l * n * width);
    }
    return { maps, tokens };
  }

  // Distances between patch centres in pixels (N N).
  function apart({ size, patch }) {
    const grid = size / patch;
    const n = grid * grid;
    return Float64Array.from({ length: n * n }, (_, i) => {
      const [query, key] = [Math.floor(i / n), i % n];
      const rows = Math.floor(query / grid) - Math.floor(key / grid);
      return patch * Math.hypot(rows, (query % grid) - (key % grid));
    });
  }

  // Attention distance of each query: maps (... N N) -> (... N), px.
  function distances(maps, away) {
    const n = Math.sqrt(away.length);
    return Float32Array.from({ length: maps.length / n }, (_, row) => {
      let sum = 0;
      for (let key = 0; key < n; key++) sum += maps[row * n + key] * away[(row % n) * n + key];
      return sum;
    });
  }

  const entropyTerm = (p) => (p > 0 ? -p * Math.log(p) : 0);

  // Normalised mutual information of query and key: maps (... N N) -> (...).
  function nmi(maps, n) {
    return Float32Array.from({ length: maps.length / (n * n) }, (_, one) => {
      const received = new Float64Array(n); // mean over queries
      let rows = 0;
      for (let i = 0; i < n * n; i++) {
        const p = maps[one * n * n + i];
        rows += entropyTerm(p) / n;
        received[i % n] += p / n;
      }
      const keys = received.reduce((sum, p) => sum + entropyTerm(p), 0);
      return Math.max(keys - rows, 0) / Math.max(Math.sqrt(keys * Math.log(n)), Number.MIN_VALUE);
    });
  }

  // Inner products of the rows of x (N D): (N N).
  function gram(x, n) {
    const width = x.length / n;
    const products = new Float64Array(n * n);
    for (let a = 0; a < n; a++) {
      for (let b = 0; b <= a; b++) {
        let sum = 0;
        for (let i = 0; i < width; i++) sum += x[a * width + i] * x[b * width + i];
        products[a * n + b] = products[b * n + a] = sum;
      }
    }
    return products;
  }

  // Cosines between all tokens (N D): (N N).
  function cosines(tokens, n) {
    const products = gram(tokens, n);
    return Float32Array.from(products, (value, i) => {
      const [a, b] = [Math.floor(i / n), i % n];
      return value / Math.sqrt(products[a * n + a] * products[b * n + b]);
    });
  }

  // Turns axes p and q of a symmetric matrix (N N) so that its entry p q becomes 0, and the vectors (rows) along.
  function rotate(matrix, vectors, n, p, q) {
    const entry = matrix[p * n + q];
    if (entry === 0) return;
    const theta = (matrix[q * n + q] - matrix[p * n + p]) / (2 * entry);
    const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
    const c = 1 / Math.hypot(t, 1);
    const turn = (array, i, j) => {
      const [a, b] = [array[i], array[j]];
      array[i] = c * (a - t * b);
      array[j] = c * (t * a + b);
    };
    for (let i = 0; i < n; i++) turn(matrix, i * n + p, i * n + q);
    for (let i = 0; i < n; i++) turn(matrix, p * n + i, q * n + i);
    for (let i = 0; i < n; i++) turn(vectors, p * n + i, q * n + i);
  }

  // Eigenvalues of a symmetric matrix (N N), descending, each with its vector, by Jacobi's rotations.
  function eigen(matrix, n) {
    const vectors = new Float64Array(n * n);
    for (let i = 0; i < n; i++) vectors[i * n + i] = 1;
    const offDiagonal = () => matrix.reduce((sum, value, i) => sum + (i % (n + 1) ? value * value : 0), 0);
    const enough = 1e-18 * matrix.reduce((sum, value) => sum + value * value, 0);
    for (let sweep = 0; sweep < 30 && offDiagonal() > enough; sweep++) {
      for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(matrix, vectors, n, p, q);
    }
    return Array.from({ length: n }, (_, i) => ({
      value: matrix[i * n + i],
      vector: vectors.subarray(i * n, (i + 1) * n),
    })).sort((a, b) => b.value - a.value);
  }

  // The tokens (N D) on their first three principal components, each stretched to 0..1 (N 3) to serve as red,
  // green and blue, and the share of the variance that the three hold.
  function components(tokens, n) {
    const width = tokens.length / n;
    const centred = Float64Array.from(tokens);
    for (let i = 0; i < width; i++) {
      let mean = 0;
      for (let token = 0; token < n; token++) mean += tokens[token * width + i] / n;
      for (let token = 0; token < n; token++) centred[token * width + i] -= mean;
    }
    // Scores are the eigenvectors of the N x N products up to a scale: no D x D covariance is needed.
    const found = eigen(gram(centred, n), n);
    const colours = new Float32Array(n * 3);
    found.slice(0, 3).forEach(({ vector }, c) => {
      const [low, high] = [Math.min(...vector), Math.max(...vector)];
      const flipped = -low > high; // the largest loading points upwards, so that the sign is no accident
      vector.forEach((value, token) => {
        const share = (value - low) / (high - low || 1);
        colours[token * 3 + c] = flipped ? 1 - share : share;
      });
    });
    const total = found.reduce((sum, { value }) => sum + value, 0);
    return { colours, explained: found.slice(0, 3).reduce((sum, { value }) => sum + value, 0) / (total || 1) };
  }

  // All that the page shows of one model and one picture (S S 3): maps (L H N N), their NMI (L H) and attention
  // distance of each query (L H N), that of uniform attention (N), and of the tokens cosines (L N N), colours
  // (L N 3) and explained variance (L).
  function look(model, pixels) {
    const { maps, tokens } = forward(model, pixels);
    const n = (model.size / model.patch) ** 2;
    const away = apart(model);
    const cosine = new Float32Array(model.depth * n * n);
    const colours = new Float32Array(model.depth * n * 3);
    const explained = new Float32Array(model.depth);
    for (let l = 0; l < model.depth; l++) {
      const layer = tokens.subarray(l * n * model.width, (l + 1) * n * model.width);
      cosine.set(cosines(layer, n), l * n * n);
      const found = components(layer, n);
      colours.set(found.colours, l * n * 3);
      explained[l] = found.explained;
    }
    const uniform = distances(new Float32Array(n * n).fill(1 / n), away);
    return { maps, nmi: nmi(maps, n), distances: distances(maps, away), uniform, cosines: cosine, colours, explained };
  }

  const models = {};

  // A Worker's side of the conversation: weights are kept, a picture is answered model by model.
  function answer(message, post) {
    if (message.content) {
      models[message.content.name] = decode(message.content);
      return;
    }
    const { ticket, rgba, side, names } = message;
    const pixels = shrink(rgba, side, models[names[0]].size);
    for (const name of names) {
      const { depth, heads, size, patch } = models[name];
      post({ ticket, name, pixels, depth, heads, size, patch, ...look(models[name], pixels) });
    }
  }

  return { decode, shrink, forward, look, answer };
})();
