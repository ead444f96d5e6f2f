import io
import os

import numpy as np
import pytest

from diffmoe_scale.evaluation.metrics.adm_statistics import read_adm_statistics
from diffmoe_scale.evaluation.metrics.measures import Need

WIDTHS: dict[Need, int] = {"moments": 4, "spatial_moments": 3}
MEAN, COVARIANCE = np.arange(4.0), np.diag([1.0, 2.0, 3.0, 4.0])


def test_means_and_covariances_are_those_of_the_file(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=MEAN.astype(np.float32), sigma=COVARIANCE, mu_s=MEAN[:3], sigma_s=COVARIANCE[:3, :3])
    found = read_adm_statistics(path, WIDTHS)
    assert found["moments"].mean_F.tolist() == MEAN.tolist()
    assert found["spatial_moments"].covariance_FF.tolist() == COVARIANCE[:3, :3].tolist()
    assert list(read_adm_statistics(path, {"moments": 4})) == ["moments"]


def test_a_file_without_statistics_and_a_folder_hold_none(tmp_path):
    np.savez(tmp_path / "pictures.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert read_adm_statistics(tmp_path / "pictures.npz", WIDTHS) == {}
    assert read_adm_statistics(tmp_path, WIDTHS) == {}


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"mu": MEAN}, "holds mu without sigma"),
        ({"mu": MEAN, "sigma": COVARIANCE, "sigma_s": COVARIANCE}, "holds sigma_s without mu_s"),
        (
            {"mu": MEAN[:2], "sigma": COVARIANCE[:2, :2]},
            r"mu and sigma have the shapes \[2\] and \[2, 2\]; expected \[4\] and \[4, 4\]",
        ),
        ({"mu": MEAN, "sigma": COVARIANCE[:2]}, r"shapes \[4\] and \[2, 4\]; expected"),
        ({"mu": MEAN * np.nan, "sigma": COVARIANCE}, "mu or sigma holds numbers that are not finite"),
        ({"mu": MEAN, "sigma": COVARIANCE * np.inf}, "mu or sigma holds numbers that are not finite"),
        ({"mu": MEAN, "sigma": COVARIANCE + np.tri(4)}, "sigma is not symmetric, so it is no covariance"),
        ({"mu": np.array(list("abcd")), "sigma": COVARIANCE}, "mu or sigma is no array of numbers"),
        ({"mu": np.array([os.system] * 4), "sigma": COVARIANCE}, "mu or sigma is no array of numbers"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path, arrays, error):
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"reference.npz.*{error}"):
        read_adm_statistics(path, WIDTHS)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "reference.npz"
    whole = io.BytesIO()
    np.savez(whole, mu=MEAN, sigma=COVARIANCE)
    for data in (b"", b"text", whole.getvalue()[:200]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"reference\.npz is no \.npz archive, or is damaged or cut"):
            read_adm_statistics(path, WIDTHS)
    damaged = bytearray(whole.getvalue())
    damaged[160] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"reference\.npz"):
        read_adm_statistics(path, WIDTHS)
