"""Numbers on data: calibration."""

from divjax.measure.calibration import (
    Calibration,
    brier_score,
    calibration,
    expected_calibration_error,
    negative_log_likelihood,
)

__all__ = [
    "Calibration",
    "brier_score",
    "calibration",
    "expected_calibration_error",
    "negative_log_likelihood",
]
