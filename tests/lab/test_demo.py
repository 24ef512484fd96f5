"""The demo: what it shows, how it goes on, what it tells, and its sheet and page."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from lab import demo, demo_kept, demo_page, demo_pictures, demo_plan, demo_sheet, demo_words, world
from lab.demo_kept import Kept
from lab.demo_pictures import Maker, Picture
from lab.evaluation.captions import SPLITS, skill_sets
from lab.evaluation.ways import DEFAULT
from lab.model import WEIGHTS
from lib_loratorio.presets import with_preset


def picture_of(shot, image=0):
    """A picture as a shot's would be, of one colour."""
    steps = 3 if shot.filmed else 0
    labels = list(world.NAMES if shot.way.everything else shot.skills)
    weights = np.zeros((len(labels), 4, 4), np.float32)
    weights[0] = 1
    found = sorted(shot.asked)[:1]
    picture = Picture(np.full((8, 8, 3), image, np.uint8), found, 40.0, 1.5, 1, labels, weights)
    if steps:
        picture.steps = np.stack([np.full((8, 8, 3), 40 * number, np.uint8) for number in range(steps)])
        picture.weights_of_steps = np.stack([weights, weights, np.roll(weights, 1, 0)])
    return picture


def all_shots():
    return [shot for section in demo_plan.sections() for shot in section.shots]


class Counting:
    """Stands in for `Maker`: makes pictures at once, and can be stopped before one."""

    made, stop_before = [], None

    def __init__(self, weights):
        pass

    def picture(self, shot):
        if len(self.made) == self.stop_before:
            raise KeyboardInterrupt
        self.made.append(shot.title)
        return picture_of(shot)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command with pictures that `Counting` makes; gives its exit code and what it printed."""
    monkeypatch.setattr(demo_kept, "Maker", Counting)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "sheets" / "demo.png"), "--workers", "1"])

    def command(stop_before=None):
        Counting.made, Counting.stop_before = [], stop_before
        code = demo.main()
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, printed.out

    return command


# What is shown


def test_captions_are_the_first_of_their_split_and_no_others():
    of_test = {one.count: one for one in skill_sets("test") if one.number == 0}
    compared = [section for section in demo_plan.sections() if section.name == "compared"]
    for section, count in zip(compared, (2, 3, 4), strict=True):
        skills, contents = of_test[count].contents()
        assert {(shot.skills, shot.shown, shot.seed) for shot in section.shots} == {
            (skills, contents[0], of_test[count].seed)
        }
    for number, (name, shot) in enumerate(zip(world.NAMES, demo_plan.sections()[0].shots, strict=True)):
        assert shot.skills == (name,) and shot.seed == SPLITS["test"].first_seed + number
        assert shot.shown == world.content((name,), shot.seed)


def test_every_way_is_at_what_its_name_says():
    settings = {title: way.settings for title, way in demo_plan.WAYS.items()}
    assert [settings[title].method for title in ("Merge", "Switch", "Composite")] == ["merge", "switch", "composite"]
    assert settings["LoRAtorio, paper"] == DEFAULT
    assert settings["LoRAtorio, balanced"] == with_preset(DEFAULT, "balanced")
    assert settings["LoRAtorio, fast"] == with_preset(DEFAULT, "fast")
    assert settings["LoRAtorio, fast"].refresh_every == 3


def test_swapped_regions_are_the_same_caption_and_noise():
    _, left, right = next(section for section in demo_plan.sections() if section.name == "regions").shots
    assert left.skills == right.skills[::-1] and (left.shown, left.seed) == (right.shown, right.seed)
    places = [[lora.tag.region for lora in shot.way.loras(sorted(shot.skills), WEIGHTS)] for shot in (left, right)]
    assert all(places[0]) and places[0] == places[1]
    assert left.title == f"{left.skills[0]} left, {left.skills[1]} right"


def test_a_pool_has_all_nine():
    merged, *pools = next(section for section in demo_plan.sections() if section.name == "pool").shots
    assert not any(lora.pooled for lora in merged.way.loras(merged.skills, WEIGHTS))
    for shot, mode in zip(pools, ("scout", "named"), strict=True):
        loras = shot.way.loras(shot.skills, WEIGHTS)
        assert [lora.path.stem for lora in loras] == list(world.NAMES) and all(lora.pooled for lora in loras)
        assert shot.way.settings.pool_mode == mode


# What is kept


def test_a_stopped_demo_says_how_to_go_on_and_makes_only_the_rest(run, tmp_path):
    code, printed = run(stop_before=4)
    assert code == 130
    assert printed.splitlines()[-1].startswith("Stopped. The same command goes on from the pictures in ")
    assert "Traceback" not in printed and not (tmp_path / "sheets" / "demo.html").exists()
    code, printed = run()
    titles = [shot.title for shot in all_shots()]
    assert code == 0 and Counting.made == titles[4:]
    assert f"{len(titles) - 4} pictures made, 4 kept from before" in printed


def test_a_second_demo_says_that_all_is_done(run, tmp_path):
    assert run()[0] == 0
    code, printed = run()
    assert code == 0 and Counting.made == []
    assert f"All {len(all_shots())} pictures were there already" in printed
    assert (tmp_path / "sheets" / "demo.png").exists() and (tmp_path / "sheets" / "demo.html").exists()


def test_pictures_of_other_settings_seeds_or_code_are_not_shown(tmp_path, monkeypatch):
    shot = all_shots()[0]
    Kept(tmp_path, WEIGHTS).keep(shot, picture_of(shot, 7))
    assert Kept(tmp_path, WEIGHTS).read(shot).image[0, 0, 0] == 7
    other = replace(shot.way, settings=replace(shot.way.settings, temperature=0.5))
    assert Kept(tmp_path, WEIGHTS).read(replace(shot, way=other)) is None
    assert Kept(tmp_path, WEIGHTS).read(replace(shot, seed=shot.seed + 1)) is None
    assert Kept(tmp_path, WEIGHTS).read(replace(shot, title="by another name")) is not None
    assert Kept(tmp_path, WEIGHTS / "loras").read(shot) is None
    monkeypatch.setattr(demo_kept, "SOURCES", demo_kept.SOURCES[1:])  # other code
    assert Kept(tmp_path, WEIGHTS).read(shot) is None


def test_a_picture_is_read_as_it_was_kept(tmp_path):
    shot = next(shot for shot in all_shots() if shot.filmed)
    kept, picture = Kept(tmp_path, WEIGHTS), picture_of(shot, 9)
    kept.keep(shot, picture)
    read = kept.read(shot)
    for name, value in vars(picture).items():
        assert np.array_equal(getattr(read, name), value), name


def test_a_damaged_file_is_made_anew_and_what_is_not_asked_for_goes(tmp_path):
    kept, (shot, other) = Kept(tmp_path, WEIGHTS), all_shots()[:2]
    kept.keep(shot, picture_of(shot))
    kept.keep(other, picture_of(other))
    kept.drop_others([shot])
    assert [file.name for file in tmp_path.iterdir()] == [kept.file(shot).name]
    kept.file(shot).write_bytes(kept.file(shot).read_bytes()[:100])
    assert kept.read(shot) is None


def test_several_processes_make_each_picture_once(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_kept, "Maker", Counting)
    monkeypatch.setattr(Counting, "stop_before", None)
    kept, shots = Kept(tmp_path, WEIGHTS), all_shots()[:5]
    there = {number: file for number, file in enumerate(map(str, demo_kept.make(shots, kept, 2)))}
    assert sorted(there.values()) == sorted(map(str, shots))
    assert sorted(tmp_path.iterdir()) == sorted(kept.file(shot) for shot in shots)


# How a picture is made


@pytest.fixture(scope="module")
def filmed():
    """A short one with its steps, and the same without."""
    shot, threads = next(shot for shot in all_shots() if shot.filmed), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_pictures, "STEPS", 3)
        maker = Maker(WEIGHTS)
        yield maker.picture(shot), maker.picture(replace(shot, filmed=False)), shot
    torch.set_num_threads(threads)


def test_filming_changes_no_picture(filmed):
    watched, plain, shot = filmed
    assert (watched.image == plain.image).all() and watched.evaluations == plain.evaluations == 3 * 8
    assert len(plain.steps) == 0 and plain.labels == list(shot.skills)


def test_a_film_has_the_estimate_and_the_weights_of_each_step(filmed):
    watched, _, shot = filmed
    assert watched.steps.shape == (3, world.SIZE, world.SIZE, 3)
    assert watched.weights_of_steps.shape == (3, len(shot.skills), 16, 16)
    assert np.allclose(watched.weights_of_steps.sum(1), 1, atol=1e-5)
    assert np.allclose(watched.weights_of_steps.mean(0), watched.weights, atol=1e-5)
    assert not np.allclose(watched.weights_of_steps[0], watched.weights_of_steps[2], atol=1e-3)
    # The last estimate is nearly the picture, the first is not yet.
    off = np.abs(watched.steps.astype(int) - watched.image.astype(int)).mean((1, 2, 3))
    assert off[2] < 2 < off[0]


# What is told


def test_a_picture_tells_what_it_shows_and_what_it_took():
    shot = next(shot for shot in all_shots() if len(shot.skills) == 3)
    assert demo_words.told(shot, picture_of(shot)) == ["1 of 3 skills", "40 evaluations, 1.5 s"]
    swapped = next(shot for shot in all_shots() if shot.placed and shot.way.regions)
    assert demo_words.told(swapped, picture_of(swapped))[0] == "1 of 2 skills, 1 in their half"


def test_the_table_has_each_way_once_over_all_its_pictures():
    shots = [shot for shot in all_shots() if shot.title == "Merge"]
    pictures = [picture_of(shot) for shot in shots]
    pictures[0].found, pictures[0].evaluations, pictures[0].seconds = list(shots[0].skills), 70.0, 3.0
    rows = demo_words.table(zip(shots, pictures))
    assert rows[1:] == [("Merge", "4 of 9", "1 of 3", "50", "2.0")]
    lines = demo_words.aligned(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[2].endswith(" 2.0") and lines[2].startswith("Merge ")


def test_importing_the_lab_prints_nothing():
    done = subprocess.run([sys.executable, "-c", "import lab.model"], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


# The sheet and the page


def made():
    sections = demo_plan.sections()
    return sections, {shot: picture_of(shot, 90) for section in sections for shot in section.shots}


def test_texts_of_the_sheet_fit_under_their_pictures():
    assert demo_sheet.sheet(*made()).too_long() == []


def test_the_sheet_has_each_picture_and_who_wins():
    sections, pictures = made()
    tiles = [tile for row in demo_sheet.sheet(sections, pictures).rows for _, of_group in row for tile in of_group]
    assert len(tiles) == len(pictures) + 4 + 5  # 4 drawings of what is asked for, 5 maps
    assert sum(np.asarray(image).shape[0] == 8 and (np.asarray(image) == 90).all() for image, _ in tiles) == len(
        pictures
    )


class Elements(HTMLParser):
    """A page's elements, as (name, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page(intro=("intro",), table=(("", "n"), ("Merge", "1"))):
    return demo_page.page(intro, *made(), table)


def test_the_page_holds_all_its_pictures_with_words_for_each():
    elements, (_, pictures) = Elements(page()), made()
    images = elements.all("img")
    assert len(images) == len(pictures) + 4 + 5 + 2 * 3
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 10 for image in images)
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", page())) == []
    assert not elements.all("link") and not any("src" in script for script in elements.all("script"))


def test_the_steps_are_there_without_a_script_and_move_with_it():
    elements = Elements(page())
    assert elements.all("input") == [
        {"type": "range", "min": "1", "max": "3", "value": "3", "aria-label": "Step of the sampling"}
    ]
    text = page()
    assert text.count("<li>") == 3 and ".playing .steps li { display: none; }" in text
    assert "playing" not in text[text.index("<body>") : text.index("<script>")]  # only the script hides stills
    first, last = demo_plan.sections()[demo_plan.COUNTS.index(demo_plan.FILMED) + 1].shots[0].skills[:2]
    assert f"Who weighs most in step 1 of 3: {first} 100%" in text
    assert re.search(rf"Who weighs most in step 3 of 3: {first} 0%, {last} 100%", text)


def test_a_number_of_seconds_stays_with_its_unit():
    assert "40 evaluations, 1.5&nbsp;s</span>" in page() and "evaluations, 1.5 s" not in page()


def test_texts_of_the_page_are_escaped():
    text = page(("<script>1 & 2</script>",), (("", "n"), ("<b>", "$x")))
    assert "&lt;script&gt;1 &amp; 2&lt;/script&gt;" in text and "<td>&lt;b&gt;</td><td>$x</td>" in text
    sections, pictures = made()
    sections[1] = sections[1]._replace(title='"><i>')
    assert "&quot;&gt;&lt;i&gt;" in demo_page.page((), sections, pictures, (("",),))
