"""Training with the data on the device, and timing beside PyTorch, as far as a CPU can tell."""

import json

import jax
import numpy as np
import pytest

from configs import arrays, digits
from mlc_jax.benchmarks import datasets
from mlc_jax.errors import InputError


@pytest.fixture
def on_device(load_program):
    return load_program("experiments.speed.on_device")


@pytest.fixture
def device_benchmark(load_program):
    return load_program("experiments.speed.device_benchmark")


pytestmark = pytest.mark.usefixtures("standard_promotion")  # For optax's Adam.


def tiny(config, **fields):
    config.model.mlp.hidden_sizes = (16,)
    config.noisy_batch_size = config.clean_batch_size = 20
    config.num_epochs, config.eval_every_epochs = 2, 1
    config.update_from_flattened_dict(fields)
    return config


def trained(on_device, config, windows=7, **fields):
    rows = []
    config = tiny(config, **fields)
    state = on_device.train(config, datasets.load(config), windows=windows, write=rows.append)
    return state, rows


@pytest.mark.slow
def test_windows_per_call_change_nothing_but_calls(on_device):
    one, many = (trained(on_device, digits.get_config(), windows=n)[0] for n in (1, 50))
    for x, y in zip(jax.tree.leaves(one.main), jax.tree.leaves(many.main), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlc", "glc", "robust_mlc", "cross_entropy"])
def test_methods_train(on_device, method):
    fields = {"method": method, "num_epochs": 6, "dataset.paired": True, "noise.level": 0.2}
    state, rows = trained(on_device, digits.get_config(), **fields)
    assert rows[-1]["step"] == int(state.step)
    assert rows[-1]["test_accuracy"] > 0.6  # Chance is 0.1.
    assert all(row["ms_per_step"] > 0 for row in rows)


def test_an_epoch_sees_every_noisy_example_once_and_old_windows_again(on_device):
    config = tiny(digits.get_config())
    config.meta_gradient.num_inner_steps, config.meta_gradient.update_every = 4, 2
    dataset = datasets.load(config)
    method = on_device.build.create_method(config, dataset.num_classes)
    draw = on_device._Draw(config, method, on_device._on_device(dataset), augment=False)
    noisy = np.asarray(draw.rows(0, 34)[0])  # [windows, k, B]
    epoch = noisy[:, 2:].reshape(-1, 20)[: len(dataset.noisy) // 20]
    assert len(np.unique(epoch)) == epoch.size
    np.testing.assert_array_equal(noisy[1:, :2], noisy[:-1, 2:])


def test_methods_between_epochs_are_refused(on_device):
    with pytest.raises(InputError, match=r"config\.method"):
        trained(on_device, digits.get_config(), method="joint")


def test_images_of_a_file_are_split_and_made_wrong(on_device, tmp_path):
    rng = np.random.default_rng(0)
    images = {
        f"{x}_images": rng.integers(0, 256, (60, 8, 8, 3), np.uint8) for x in ("train", "test")
    }
    labels = {f"{x}_labels": np.arange(60) % 3 for x in ("train", "test")}
    np.savez(tmp_path / "images.npz", **images, **labels)
    config = tiny(arrays.get_config())
    config.dataset.name, config.noise.type, config.noise.level = "cifar10", "flip", 1.0
    config.dataset.clean_per_class, config.dataset.standardize = 4, False
    dataset = on_device.load(config, str(tmp_path / "images.npz"))
    assert (len(dataset.clean), len(dataset.noisy), dataset.num_classes) == (12, 48, 3)
    assert dataset.noise_rate == 1.0


def test_crops_are_pieces_of_the_padded_image(on_device):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    crops = np.asarray(on_device._crop_and_flip(images, jax.random.key(3)))
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    for image, crop in zip(padded, crops, strict=True):
        pieces = [image[i : i + 6, j : j + 7] for i in range(9) for j in range(9)]
        assert any((piece == crop).all() or (piece[:, ::-1] == crop).all() for piece in pieces)


@pytest.mark.slow
def test_rows_are_written(on_device, run_program, tiny_flags, tmp_path):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    code, _, err = run_program("experiments.speed.on_device", *flags, f"--workdir={tmp_path}")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "on_device.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "ms_per_step", "test_accuracy"} <= rows[-1].keys()


def test_the_benchmark_of_devices_wants_one(run_program, tmp_path):
    code, _, err = run_program(
        "experiments.speed.device_benchmark", f"--workdir={tmp_path}", required=["workdir"]
    )
    assert code == 2
    assert "error: --parts: got the CPU, expected an accelerator" in err


def test_time_calls_counts_what_is_waited_for(device_benchmark):
    device_benchmark.MIN_SECONDS, pending, done = 0.01, [], []

    def wait():
        done.extend(pending)
        pending.clear()

    seconds = device_benchmark.time_calls(lambda: pending.append(1), wait)
    assert not pending
    assert 0 < seconds < 0.01
    assert len(done) > 10


@pytest.mark.slow
def test_programs_are_timed_where_they_scan_or_stack(device_benchmark):
    device_benchmark.MIN_SECONDS = 0.01
    config = tiny(digits.get_config())
    one = device_benchmark._ours(config, "exact")
    scanned = device_benchmark._scanned(config, "exact", 3)
    stacked = device_benchmark._stacked(config, "exact", 2)
    assert scanned["ms"] == pytest.approx(3 * scanned["ms_per_inner_step"])
    assert stacked["state_and_batch_mib"] == pytest.approx(2 * one["state_and_batch_mib"], rel=0.01)


@pytest.mark.slow
def test_differences_between_devices(device_benchmark):
    row = device_benchmark._difference(tiny(digits.get_config()), "one_step", 2)
    assert row == {"main": 0.0, "meta": 0.0}  # Of the CPU with itself.
