# SPDX-License-Identifier: Apache-2.0
"""The divergence guard and rollback: spikes, checkpoints, skipped batches."""

import json
import math
import random

import pytest

from common import errors
from helpers import planted
from training import checkpoints, divergence, rollback, run_config


class Feed:
    """Feeds a guard one batch after the other."""

    def __init__(self, **options):
        self.guard = divergence.Guard("rollback", **options)
        self.batch = self.step = 0

    def __call__(self, loss=2.0, norm=1.0, updated=True):
        """None, or the Diverged that the guard raises."""
        self.step += updated
        self.batch += 1
        try:
            self.guard.observe(
                divergence.Observation(
                    self.batch - 1, 1, self.step, int(updated), loss, norm
                )
            )
        except divergence.Diverged as diverged:
            return diverged
        return None

    def usual(self, count=60, seed=0):
        """Losses that fall from 8 to 2, with noise."""
        noise = random.Random(seed)
        for number in range(count):
            assert not self(
                2 + 6 * math.exp(-number / 10) + noise.gauss(0, 0.1),
                math.exp(noise.gauss(0, 0.3)),
            )
        return self


def test_a_falling_noisy_loss_is_usual():
    for seed in range(20):
        Feed().usual(1000, seed)


@pytest.mark.parametrize(
    "seen, reason",
    [
        (dict(loss=math.nan), "loss is nan"),
        (dict(loss=math.inf), "loss is inf"),
        (dict(norm=math.inf), "gradient norm is inf"),
    ],
)
def test_a_value_that_is_not_finite_is_unusual_from_the_start(seen, reason):
    feed = Feed()
    feed(2.0)
    diverged = feed(**seen)
    assert str(diverged) == f"{reason} at step 2 (batch 1)"
    assert (diverged.first, diverged.end) == (1, 1 + divergence.SKIPPED)


def test_a_jump_of_loss_or_gradient_norm_is_unusual():
    feed = Feed().usual()
    assert "loss 9.0000 is far above its mean 2." in str(feed(9.0))
    assert not feed(norm=5.0)
    diverged = feed(norm=50.0)
    assert "gradient norm 50 is far above its mean " in str(diverged)
    assert (diverged.first, diverged.end) == (62, 62 + divergence.SKIPPED)
    # What was usual stays known after a rollback.
    assert feed(9.0) and not feed(2.0)


def test_a_streak_of_overflows_is_unusual():
    feed = Feed().usual()
    for _ in range(15):  # the scale falls from 2**15 to 1
        assert not feed(math.nan, math.nan, updated=False)
    feed()
    for _ in range(divergence.OVERFLOW_STREAK - 1):
        assert not feed(math.nan, math.nan, updated=False)
    diverged = feed(math.inf, math.inf, updated=False)
    assert str(diverged) == "20 overflows in a row at step 61 (batch 76)"
    assert (diverged.first, diverged.end) == (76, 96)


def test_more_deviations_allow_more():
    assert Feed().usual()(6.0)
    assert not Feed(deviations=100.0).usual()(6.0)


def test_the_guard_stops_or_does_nothing():
    seen = divergence.Observation(7, 1, 8, 1, math.nan, 1.0)
    divergence.Guard().observe(seen)
    with pytest.raises(
        errors.UserError, match=r"loss is nan at step 8 .*learning_rate"
    ):
        divergence.Guard("stop").observe(seen)


# Rollback.


class Directory:
    """A run's directory whose checkpoints are at batches 0, 50 and 100."""

    def __init__(self, folder, monkeypatch):
        self.path = str(folder)
        self.paths = ["0", "50", "100"]
        for name, replacement in (
            ("listed", lambda directory: list(self.paths)),
            ("damage", lambda path: ""),
            ("batches_seen", int),
            ("keep", lambda directory, paths: setattr(self, "paths", paths)),
        ):
            monkeypatch.setattr(checkpoints, name, replacement)

    def roll_back(self, first, end, most=9):
        """Rolls back after a bad batch; returns the checkpoints left."""
        run = run_config.RunConfig(
            output_dir=self.path, divergence_max_rollbacks=most
        )
        rollback.roll_back(run, divergence.Diverged("x", first, end))
        return self.paths

    def resume(self, seen):
        return rollback.resume(self.path, seen)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    return Directory(tmp_path, monkeypatch)


def test_rollback_restores_the_last_checkpoint_before_the_bad_batch(directory):
    assert directory.roll_back(100, 120) == ["0", "50", "100"]
    assert directory.roll_back(99, 130) == ["0", "50"]
    # Diverged again right after batch 50: the checkpoint before is restored.
    assert directory.roll_back(140, 150) == ["0"]
    # There is none before batch 0.
    assert directory.roll_back(10, 12) == ["0"]
    with pytest.raises(errors.UserError, match="so far: 4, and .* is 4;"):
        directory.roll_back(12, 13, most=4)


def test_without_an_older_checkpoint_there_is_no_rollback(directory):
    directory.paths = ["50", "100"]
    with pytest.raises(errors.UserError, match="--keep_checkpoint_max"):
        directory.roll_back(49, 50)


def test_a_rollback_skips_batches(directory):
    assert directory.resume(50) == (50, 0)
    directory.roll_back(52, 57)
    assert directory.resume(50) == (57, 7)
    assert directory.resume(60) == (60, 7)
    assert directory.resume(20) == (20, 0)
    directory.paths.append("100")
    directory.roll_back(110, 120)
    assert directory.resume(100) == (120, 27)
    with open(directory.path + "/rollbacks.json") as stream:
        assert json.load(stream) == {
            "rollbacks": 2,
            "skipped": [[50, 57], [100, 120]],
        }
    directory.paths.insert(2, "80")
    directory.roll_back(90, 130)  # the jump at batch 100 is void now
    assert directory.resume(80) == (130, 57)
    assert directory.resume(150) == (150, 57)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rollbacks": 1, "skipped": [3]}',
        "[" * 100000,
        '{"rollbacks": 1e999, "skipped": []}',
    ],
)
def test_a_damaged_list_of_rollbacks_is_an_error(tmp_path, text):
    (tmp_path / "rollbacks.json").write_text(text)
    with pytest.raises(errors.UserError, match='write {"rollbacks": 0'):
        rollback.resume(str(tmp_path), 0)


# Entire runs.


@pytest.fixture
def pretraining(tmp_path):
    return planted.Pretraining(tmp_path).write()


def test_a_planted_spike_is_rolled_back(pretraining, log_lines):
    expected = pretraining(
        "clean", is_evaluated=True, divergence_guard="rollback"
    )
    assert not [line for line in log_lines if "far above" in line]
    bad = range(112, 116)
    loss = pretraining(
        "planted", bad, is_evaluated=True, divergence_guard="rollback"
    )
    logged = [line for line in log_lines if line.startswith("rollback")]
    assert len(logged) == 1
    assert "rollback 1 of at most 3 to" in logged[0]
    assert "model.ckpt-100: loss" in logged[0]
    assert logged[0].endswith("at step 113 (batch 112); resuming at batch 132")
    print("loss", expected, "with the planted spike", loss)
    assert abs(loss - expected) < 0.01 * expected
    # Step 240 took 272 batches: 32 were skipped, none overflowed.
    last = [line for line in log_lines if line.startswith("step=240 ")][-1]
    assert " overflows=0" in last
    assert (
        checkpoints.batches_seen(
            checkpoints.newest(str(pretraining.folder / "planted"))
        )
        == 272
    )


def test_a_planted_spike_stops(pretraining):
    with pytest.raises(
        errors.UserError, match=r"diverged: loss .* at step 61 \(batch 60\)"
    ):
        pretraining("stop", (60, 61), divergence_guard="stop")


def test_rollbacks_come_to_an_end(pretraining, log_lines):
    with pytest.raises(errors.UserError, match="rollbacks so far: 1, and"):
        pretraining(
            "ends",
            range(60, 1000),
            divergence_guard="rollback",
            divergence_max_rollbacks=1,
        )
