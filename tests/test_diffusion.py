"""Calibration feeds of diffusion models: on the trajectories, spread over the timesteps."""

import collections
import tracemalloc

import numpy as np
import pytest

from edgeq.diffusion import compare_trajectories, load_scheduler, trajectory_feeds
from edgeq.errors import DataError, EdgeqError, UnknownNameError
from tests.noise_models import SHAPE, noise, proto

diffusers = pytest.importorskip("diffusers", reason="needs edgeq[diffusers]")
torch = pytest.importorskip("torch", reason="needs edgeq[torch]")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers and numpy 2
]


def collect(scheduler="DDIMScheduler", model=noise, **changes):
    options = {"samples": 40, "steps": 10, "shape": SHAPE, **changes}
    return list(trajectory_feeds(model, scheduler, **options))


def as_bytes(feeds):
    return [(name, array.tobytes()) for feed in feeds for name, array in feed.items()]


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(("samples", "steps"), [(40, 10), (100, 50), (7, 7), (60, 20)])
def test_feeds_are_uniform_over_the_timesteps(scheduler, samples, steps):
    feeds = collect(scheduler, samples=samples, steps=steps)
    counts = collections.Counter(int(feed["timestep"][0]) for feed in feeds)
    assert len(feeds) == samples and len(counts) == steps
    assert set(counts.values()) == {samples // steps}
    for feed in feeds:
        assert feed["sample"].shape == (1, *SHAPE) and feed["sample"].dtype == np.float32
        assert feed["timestep"].shape == (1,) and feed["timestep"].dtype == np.int64


@pytest.mark.parametrize("count", [5, 10, 20, 33])
def test_the_first_feeds_alone_are_spread_too(count):
    steps = 50
    timesteps = [int(feed["timestep"][0]) for feed in collect(samples=100, steps=steps)[:count]]
    fifths = collections.Counter(5 * t // 1000 for t in timesteps)
    assert len(fifths) == 5 and max(fifths.values()) - min(fifths.values()) <= 2


def test_an_image_gives_few_feeds():
    """Each of the samples of one image is on one trajectory: at most ten are taken."""
    feeds = collect(samples=30, steps=100, batch=1)
    timesteps = [int(feed["timestep"][0]) for feed in feeds]
    for first in range(0, 30, 10):
        gaps = -np.diff(sorted(timesteps[first : first + 10], reverse=True))
        assert gaps.tolist() == [100] * 9


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_the_same_seed_gives_the_same_bytes(name):
    made = getattr(diffusers, name)(timestep_spacing="leading")
    torch.manual_seed(1)
    first = collect(made)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = collect(made)
    assert as_bytes(first) == as_bytes(second)
    assert torch.equal(state, torch.random.get_rng_state()), "the user's generator stays as it is"
    assert as_bytes(collect(made, seed=1)) != as_bytes(first)


class Drawing:
    """A scheduler that does nothing but draw, and keeps what it drew."""

    def __init__(self, drawn):
        self.drawn = drawn

    def __deepcopy__(self, memo):
        return Drawing(self.drawn)

    def set_timesteps(self, count):
        self.timesteps = torch.arange(count)

    def step(self, model_output, timestep, sample, *, return_dict):
        self.drawn.append(float(torch.randn(1)))
        return (sample,)


def test_each_step_of_each_group_meets_noise_of_its_own():
    drawn: list[float] = []
    feeds = collect(Drawing(drawn), samples=30, steps=10, batch=1)
    starts = {feed["sample"].tobytes() for feed in feeds}
    assert len(starts) == 3 and len(drawn) == len(set(drawn)) == 30


def test_feeds_lie_on_the_trajectory_that_diffusers_walks():
    scheduler = diffusers.DDIMScheduler()
    feeds = collect(scheduler, samples=10, steps=10, batch=1)
    by_time = sorted(feeds, key=lambda feed: -int(feed["timestep"][0]))
    sample = torch.from_numpy(by_time[0]["sample"])
    scheduler.set_timesteps(10)
    for timestep, feed in zip(scheduler.timesteps, by_time, strict=True):
        assert feed["timestep"].tolist() == [int(timestep)]
        assert feed["sample"].tobytes() == sample.numpy().tobytes()
        predicted = torch.from_numpy(noise(feed))
        sample = scheduler.step(predicted, timestep, sample).prev_sample


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
        "LCMScheduler", "TCDScheduler", "SASolverScheduler",
    ],
)  # fmt: skip
def test_any_scheduler_with_whole_timesteps(name):
    feeds = collect(name, samples=8, steps=8)
    assert len(feeds) == 8 and all(np.isfinite(feed["sample"]).all() for feed in feeds)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_scaled_inputs_and_other_spacings(name):
    scheduler = getattr(diffusers, name)(timestep_spacing="leading")
    feeds = collect(scheduler, samples=8, steps=8)
    wide = max(float(np.abs(feed["sample"]).max()) for feed in feeds)
    assert 1 < wide < 20, "what the model is fed is scaled, samples are not"


def test_memory_does_not_grow_with_samples():
    peaks = []
    for samples in (300, 900):
        feeds = trajectory_feeds(
            lambda feeds: feeds["sample"], "DDIMScheduler", samples=samples, steps=10,
            shape=(3, 64, 64),
        )  # fmt: skip
        next(feeds)
        tracemalloc.start()
        assert sum(1 for _ in feeds) == samples - 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] and peaks[0] > 100 * 48 * 2**10


def test_a_model_that_fixes_its_batch():
    model = proto(batch=4, timestep=(4,))
    feeds = collect(model=model, samples=20, steps=10, shape=None)
    assert all(feed["sample"].shape == (4, *SHAPE) for feed in feeds) and len(feeds) == 20
    assert {len(set(feed["timestep"].tolist())) for feed in feeds} == {1}
    counts = collections.Counter(int(feed["timestep"][0]) for feed in feeds)
    assert len(counts) == 10 and set(counts.values()) == {2}
    found = compare_trajectories(model, model, "DDIMScheduler", steps=3, samples=8, batch=3)
    assert found.end.sqnr_db is None
    with pytest.raises(DataError, match="6 images do not fill batches of 4"):
        compare_trajectories(model, model, "DDIMScheduler", steps=3, samples=6)


@pytest.mark.parametrize(("timestep", "shape"), [((), ()), ((1,), (1,)), (("batch",), (1,))])
def test_a_timestep_for_all_images(timestep, shape):
    feeds = collect(model=proto(timestep=timestep), samples=4, steps=4, shape=None)
    assert [feed["timestep"].shape for feed in feeds] == [shape] * 4


def test_conditions_come_row_by_row():
    rows = np.arange(3, dtype=np.int64)
    seen = []

    def model(feeds):
        seen.append(feeds["label"].tolist())
        return noise(feeds)

    feeds = collect(model=model, samples=50, steps=10, batch=2, conditions={"label": rows})
    assert seen[0] == [0, 1] and seen[10] == [2, 0] and seen[20] == [1]
    labels = [int(feed["label"][0]) for feed in feeds]
    assert set(labels[:20]) == {0, 1} and set(labels) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "0 samples are none"),
        ({"steps": 0}, "0 steps are none"),
        ({"steps": 2000}, "DDIMScheduler refuses 2000 steps"),
        ({"shape": None}, "shape of one image is not known"),
        ({"scheduler": "EulerDiscreteScheduler", "steps": 8}, "timestep 856.286 is no integer"),
        ({"scheduler": "DDIMSchedular"}, "did you mean 'DDIMScheduler'"),
        ({"scheduler": object()}, "no scheduler: give one of diffusers'"),
        ({"scheduler": "no-such.json"}, "cannot be read"),
        ({"model": proto(), "shape": (1, 9, 9)}, "do not fit the input's"),
        ({"model": proto(), "sample": "smaple"}, "did you mean 'sample'"),
        ({"model": proto(sizes=(1, "h", "w")), "shape": None}, "say the shape of one image"),
        ({"model": proto(), "conditions": {"label": np.zeros(3)}}, "no input 'label'"),
        ({"conditions": {"label": np.zeros(0)}}, "'label' has no rows"),
        ({"model": lambda feeds: feeds["sample"] * np.nan}, "predicts NaN or an infinity"),
        ({"model": lambda feeds: feeds["sample"][:, :, 1:]}, "fails at timestep 900"),
    ],
)
def test_what_is_refused(changes, says):
    with pytest.raises(EdgeqError, match=says):
        collect(**changes)


def test_schedulers_in_every_form(tmp_path, monkeypatch):
    original = diffusers.DDPMScheduler(num_train_timesteps=50, beta_end=0.01)
    original.save_pretrained(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import diffusers\ndef make():\n"
        "    return diffusers.DDPMScheduler(num_train_timesteps=50, beta_end=0.01)\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    forms = [original, tmp_path, tmp_path / "scheduler_config.json", "mine:make"]
    found = [as_bytes(collect(form, samples=5, steps=5)) for form in forms]
    assert found == [found[0]] * 4
    assert original.num_inference_steps is None, "the user's scheduler stays as it is"
    with pytest.raises(DataError, match="mine:wrong is int, no scheduler"):
        load_scheduler("mine:wrong")
    (tmp_path / "other.json").write_text('{"_class_name": "DDIMSchedule"}')
    with pytest.raises(UnknownNameError, match="did you mean 'DDIMScheduler'"):
        load_scheduler("other.json")
    for text, says in (("{}", "_class_name"), ("[", "not valid JSON")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match=says):
            load_scheduler(tmp_path / "other.json")
