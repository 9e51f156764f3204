"""Directories and files, on a disk or in a bucket. Buckets themselves: tests/buckets_test.py."""

import pytest

from mlc_jax import paths
from mlc_jax.errors import ExitCode, InputError, Lost, exit_code


class _Gone:
    """An object of a bucket that does not answer."""

    def __fspath__(self):
        return "gs://bucket/run/results.json"

    def write_bytes(self, content):
        raise RuntimeError("503 Service\nUnavailable")


def test_a_bucket_that_does_not_answer_is_worth_another_try():
    with pytest.raises(Lost) as error:
        paths.write(_Gone(), b"x")
    assert str(error.value) == (
        "cannot write gs://bucket/run/results.json: 503 Service Unavailable"
    )
    assert exit_code(error.value) == ExitCode.LOST


def test_a_file_that_cannot_be_written_is_named_and_the_one_before_stays(tmp_path):
    file = paths.absolute(tmp_path) / "results.json"
    paths.write(file, b"before")
    (tmp_path / "results.json.partial").mkdir()
    with pytest.raises(OSError, match=r"results\.json"):
        paths.write(file, b"after")
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize("path", ["gs:/bucket/run", "gs://bucket/", "gs://", "s3://bucket/run"])
def test_what_is_no_bucket_is_refused(path):
    with pytest.raises(InputError, match=r"expected a local path, or gs://BUCKET/NAME"):
        paths.absolute(path)
