"""The coverage table: what is analysed is measured, what is refused has a reason, and the file is current."""

import pandas as pd
import pytest
import timm

from nbhelpers.coverage import PATH, examine, smallest


def test_a_vision_transformer_is_measured_whole():
    row = examine("vision_transformer")
    assert row["outcome"] == "analysed"
    assert row["blocks"] == len(timm.create_model(row["model"]).blocks)


def test_a_window_transformer_is_refused_with_the_reason():
    row = examine("swin_transformer")
    assert row["outcome"] == "refused"
    assert "windows" in row["reason"]


def test_the_smallest_model_of_a_family_is_chosen():
    assert smallest("vision_transformer").startswith("test_")
    with pytest.raises(ValueError):
        smallest("no_such_family")


def test_the_stored_table_holds_both_outcomes():
    table = pd.read_csv(PATH)
    assert {"beit", "deit", "eva", "vision_transformer"} <= set(
        table.query("outcome == 'analysed'")["family"]
    )
    refused = table.query("outcome == 'refused'")
    assert {"cait", "hiera", "pit", "swin_transformer", "xcit"} <= set(refused["family"])
    assert refused["reason"].notna().all()
