"""Studies: their images, their encoders, folders of the reader's."""

import pytest

from nbhelpers.study import study


def test_studies_have_titles_and_an_untrained_reference():
    assert study("shapes").models[-1] == "shapes.random"
    assert study("cifar10").title == "CIFAR-10 (photographs)"
    with pytest.raises(ValueError, match="shapes, cifar10"):
        study("cifar11")


def test_a_folder_is_a_study_read_by_the_encoders_of_photographs(tmp_path):
    assert study(f"folder:{tmp_path}").models == study("cifar10").models
