"""The scan of the SNR over input noise and conditioning, on a model small enough to check by hand."""

from pathlib import Path

import numpy as np

from experiments.theory import mismatch
from molrg import snr


def test_the_scan_finds_the_peaks_of_its_curves(tmp_path: Path) -> None:
    inputs = [0, 0.3, 1]
    found = mismatch.run([2], [3], [0.3], inputs, 13, tmp_path)
    assert found["models"].tolist() == [[2, 3, 0.3]]
    assert (found["num_maxima"] == 1).all()
    for i, given in enumerate(inputs):
        place, height = found["place"][0, i], found["height"][0, i]
        near = snr.mismatched(2, 3, 0.3, given, [0.97 * place, place, 1.03 * place])
        assert near.argmax() == 1
        np.testing.assert_allclose(float(near[1]), height, rtol=1e-5)
    assert np.isnan(found["matched"][0, 0])
    np.testing.assert_allclose(found["matched"][0, 1], float(snr.exact(2, 3, 0.3, 0.3)), rtol=1e-5)
    more = snr.mismatched(2, 3, 0.3, 0.3, np.geomspace(1e-2, 1e2, 9))
    most = float((more / snr.mismatched(2, 3, 0.3, 0, np.geomspace(1e-2, 1e2, 9))).max())
    assert most - 1e-6 <= found["growth"][0] < 1
