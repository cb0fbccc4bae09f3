# SPDX-License-Identifier: Apache-2.0
"""The divergence guard: what it calls trouble, where a run goes back to."""

import math
import random
import tempfile

import pytest

from common import errors
from helpers import planted
from training import checkpoints, divergence, train_step


class Feed:
    """Feeds a detector one batch after the other."""

    def __init__(self, **options):
        self.detector = divergence.Detector(**options)
        self.batch = self.step = 0

    def __call__(self, loss=2.0, norm=1.0, updated=True):
        self.step += updated
        self.batch += 1
        return self.detector.observe(
            divergence.Observation(
                self.batch - 1, 1, self.step, int(updated), loss, norm
            )
        )

    def usual(self, count=60, seed=0):
        """Losses that fall from 8 to 2, with noise."""
        noise = random.Random(seed)
        for number in range(count):
            assert not self(
                2 + 6 * math.exp(-number / 10) + noise.gauss(0, 0.1),
                math.exp(noise.gauss(0, 0.3)),
            )
        assert self.detector.trouble is None
        return self


def test_a_falling_noisy_loss_is_usual():
    for seed in range(20):
        Feed().usual(1000, seed)


def test_a_spike_is_named_and_ends_when_the_run_is_calm():
    feed = Feed().usual()
    assert "loss 9.0000 is far above its mean 2." in feed(9.0)
    assert not feed(2.0)
    assert feed(8.0)
    assert feed.detector.trouble is None
    for _ in range(divergence.CALM):
        assert feed.detector.trouble is None
        feed(2.0)
    trouble = feed.detector.trouble
    assert (trouble.first, trouble.end, trouble.step) == (60, 63, 61)
    assert str(trouble).endswith("at step 61 (batches 60 to 62)")


def test_the_guard_does_not_wait_for_ever():
    feed = Feed().usual()
    for _ in range(divergence.PATIENCE):
        assert feed.detector.trouble is None
        feed(7.0)
    assert (feed.detector.trouble.first, feed.detector.trouble.end) == (60, 80)


@pytest.mark.parametrize(
    "seen, reason",
    [
        (dict(loss=math.nan), "loss is nan"),
        (dict(loss=math.inf), "loss is inf"),
        (dict(norm=math.inf), "gradient norm is inf"),
    ],
)
def test_no_number_is_trouble_at_once_even_at_the_start(seen, reason):
    feed = Feed()
    feed(2.0)
    assert feed(**seen) == reason
    assert feed.detector.trouble == divergence.Trouble(1, 2, 2, reason)


def test_a_jump_of_the_gradient_norm_is_trouble():
    feed = Feed().usual()
    assert not feed(norm=5.0)
    assert "gradient norm 50 is far above its mean " in feed(norm=50.0)
    for _ in range(divergence.CALM):
        feed()
    assert feed.detector.trouble.first == 61


def test_overflows_are_trouble_when_they_do_not_end():
    feed = Feed().usual()
    for _ in range(15):  # the scale falls from 2**15 to 1
        assert not feed(math.nan, math.nan, updated=False)
    feed()
    assert feed.detector.trouble is None
    for _ in range(divergence.OVERFLOW_STREAK - 1):
        assert not feed(math.nan, math.nan, updated=False)
    assert feed(math.inf, math.inf, updated=False) == "20 overflows in a row"
    assert (feed.detector.trouble.first, feed.detector.trouble.end) == (76, 96)


def test_more_deviations_allow_more():
    assert Feed().usual()(6.0)
    assert not Feed(deviations=100.0).usual()(6.0)


def test_what_was_usual_is_remembered_after_a_rollback():
    feed = Feed().usual()
    feed(math.nan)
    feed.detector.forget()
    assert feed.detector.trouble is None
    assert feed(9.0) and not feed(2.0)


def observe(guard, loss):
    return guard.observe(divergence.Observation(7, 1, 8, 1, loss, 1.0))


def test_the_guard_stops_rolls_back_or_does_nothing():
    assert observe(divergence.Guard(), math.nan) == ""
    with pytest.raises(
        errors.UserError, match=r"loss is nan at step 8 .*learning_rate"
    ):
        observe(divergence.Guard("stop"), math.nan)
    with pytest.raises(divergence.Diverged) as caught:
        observe(divergence.Guard("rollback"), math.nan)
    assert caught.value.trouble.first == 7


# Where a run goes back to.


def skips_in(path, *jumps):
    skips = divergence.Skips(str(path))
    for jump in jumps:
        skips.add(*jump)
    return divergence.Skips(str(path))


def test_skips_outlive_the_process(tmp_path):
    assert skips_in(tmp_path).resume(40) == (40, 0)
    skips = skips_in(tmp_path, (40, 47), (100, 120))
    assert skips.rollbacks == 2
    assert skips.resume(40) == (47, 7)
    assert skips.resume(60) == (60, 7)
    assert skips.resume(100) == (120, 27)
    assert skips.resume(20) == (20, 0)


def test_a_later_rollback_voids_the_jumps_behind_it(tmp_path):
    skips = skips_in(tmp_path, (40, 47), (100, 120), (80, 130), (80, 140))
    assert skips.rollbacks == 4
    assert skips.resume(80) == (140, 67)
    assert skips.resume(150) == (150, 67)


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
def test_a_damaged_list_of_skips_is_an_error(tmp_path, text):
    (tmp_path / "rollbacks.json").write_text(text)
    with pytest.raises(errors.UserError, match='write {"rollbacks": 0'):
        divergence.Skips(str(tmp_path))


def test_target_is_the_last_checkpoint_before_the_trouble(tmp_path):
    written = [("a", 0), ("b", 50), ("c", 100)]

    def target(first, *jumps):
        return divergence.rollback_target(
            written,
            divergence.Trouble(first, first + 1, 1, "x"),
            skips_in(tempfile.mkdtemp(dir=str(tmp_path)), *jumps),
        )

    assert target(100) == 2
    assert target(99) == 1
    # Trouble came again from b: the one before is taken.
    assert target(70, (50, 60)) == 0
    assert target(10, (0, 8)) == 0
    with pytest.raises(errors.UserError, match="--keep_checkpoint_max"):
        divergence.rollback_target(
            written[1:], divergence.Trouble(49, 50, 1, "x"), skips_in(tmp_path)
        )


# A whole run.


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
    told = [line for line in log_lines if line.startswith("rollback")]
    assert len(told) == 1
    assert "rollback 1 of at most 3 to" in told[0]
    assert "model.ckpt-100: loss" in told[0]
    assert told[0].endswith(
        "at step 113 (batches 112 to 115); going on at batch 116"
    )
    print("loss", expected, "with the planted spike", loss)
    assert abs(loss - expected) < 0.01 * expected
    # Step 240 took 256 batches: 16 were passed over, none overflowed.
    last = [line for line in log_lines if line.startswith("step=240 ")][-1]
    assert " overflows=0" in last
    assert (
        train_step.checkpoints.batches_seen(
            checkpoints.newest(str(pretraining.folder / "planted"))
        )
        == 256
    )


def test_a_planted_spike_stops(pretraining, log_lines):
    with pytest.raises(
        errors.UserError,
        match=r"diverged: loss .* at step 61"
        r" \(batches 60 to 6\d\)",
    ):
        pretraining("stop", (60, 61), divergence_guard="stop")
    told = [line.split()[:2] for line in log_lines if "far above" in line]
    assert told[:2] == [["step=61", "batch=60"], ["step=62", "batch=61"]]


def test_rollbacks_come_to_an_end(pretraining, log_lines):
    with pytest.raises(errors.UserError, match="rollbacks so far: 1, and"):
        pretraining(
            "ends",
            range(60, 1000),
            divergence_guard="rollback",
            divergence_max_rollbacks=1,
        )
