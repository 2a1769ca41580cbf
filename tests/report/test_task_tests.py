"""Tests over tasks: what scipy says of the same files, what is lacking is named, broken files are refused."""

import csv
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_rel, wilcoxon

from monai_ext.__main__ import main
from monai_ext.evaluation.run_folder import CASE_COLUMNS, CASES, MATRIX, MATRIX_COLUMNS
from monai_ext.report.matrix import task_maps
from monai_ext.report.runs import Run
from monai_ext.report.statistics import RESAMPLES, corrected, least_wilcoxon, paired_test
from monai_ext.report.task_tests import TaskKey, compare_tasks, task_tests

TASKS = (
    ("a", "T1", "T2", 12), ("a", "T2", "T1", 12), ("a", "T1+T2", "FLAIR", 10),
    ("b", "T1", "T2", 9), ("b", "T2", "T1", 9),
)  # fmt: skip
Case = tuple[str, str, str, str, str, float | str, float | str]


def cases_of(skill: float, seed: int, tasks: Iterable[tuple[str, str, str, int]] = TASKS) -> list[Case]:
    """`skill` dB more in T1 -> T2 of a, and as much less in T2 -> T1; subjects differ as heads do."""
    rng, rows = np.random.default_rng(seed), []
    for dataset, sources, target, n in tasks:
        gain = {("a", "T1"): skill, ("a", "T2"): -skill}.get((dataset, sources), 0.2 * skill)
        for number in range(n):
            head = 25 + 2 * np.sin(number)
            psnr = round(float(head + gain + rng.normal(0, 0.4)), 4)
            rows.append((f"s{number}", dataset, sources, target, "brain", psnr, round(psnr / 40, 6)))
            rows.append((f"s{number}", dataset, sources, target, "slice", 99.0, 0.99))
    return rows


def make_run(folder: Path, label: str, cases: Iterable[Case], *, columns: tuple[str, ...] = CASE_COLUMNS) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    cases = list(cases)
    tasks = dict.fromkeys((row[1:5]) for row in cases)
    with (folder / MATRIX).open("w", newline="") as file:
        csv.writer(file).writerows([MATRIX_COLUMNS, *((*task, 1, 25.0, "", 0.8, "") for task in tasks)])
    with (folder / CASES).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *cases])
    return Run(folder, label, {}, {}, {}, {})


@pytest.fixture
def both(tmp_path: Path) -> tuple[Run, Run]:
    return make_run(tmp_path / "a", "Full", cases_of(0, 1)), make_run(tmp_path / "b", "Plain", cases_of(2.0, 2))


def psnr_of(run: Run) -> dict[tuple[str, str, str], dict[str, float]]:
    """Read anew, without what is tested here."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    with (run.folder / CASES).open(newline="") as file:
        for row in csv.DictReader(file):
            if row["region"] == "brain":
                found.setdefault((row["dataset"], row["sources"], row["target"]), {})[row["subject"]] = float(
                    row["psnr"]
                )
    return found


def differences(ours: Run, theirs: Run) -> Mapping[tuple[str, str, str], np.ndarray]:
    first, second = psnr_of(ours), psnr_of(theirs)
    return {
        task: np.array([first[task][name] - second[task][name] for name in first[task] if name in second[task]])
        for task in first
    }


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page))).strip()


def row_of(page: str, task: str, *, figure: int = 0, which: int = 0) -> str:
    table = re.findall(r"<table class=tests>.*?</table>", page, flags=re.S)[figure]
    return text_of(re.findall(rf"<tr><th scope=row>{re.escape(task)}</th>.*?</tr>", table, flags=re.S)[which])


def test_every_tasks_p_values_are_scipys_after_holm_over_all_tasks_and_both_figures(both: tuple[Run, Run]) -> None:
    (one,) = compare_tasks(both)
    assert (one.run, one.reference) == ("Plain", "Full")
    apart = differences(both[1], both[0])
    assert len(one.tests) == 2 * len(apart) == 10
    for kind, plain in (("t", lambda d: ttest_rel(d, 0 * d).pvalue), ("wilcoxon", lambda d: wilcoxon(d).pvalue)):
        # SSIM is PSNR / 40, rounded: the same p values but for the rounding, all of them one family
        p = sorted(getattr(judged.test, kind) for judged in one.tests.values())
        for task, d in apart.items():
            test = one.tests[TaskKey(task[0], tuple(task[1].split("+")), task[2]), "psnr"].test
            own = plain(d)
            assert getattr(test, kind) == pytest.approx(own)
            assert test.difference.mean == pytest.approx(d.mean())
            stepped = max(min(1.0, (len(p) - i) * each) for i, each in enumerate(p) if each <= own * (1 + 1e-9))
            assert getattr(test, f"{kind}_holm") == pytest.approx(stepped)


def test_over_all_tasks_a_subject_counts_once(both: tuple[Run, Run]) -> None:
    (one,) = compare_tasks(both)
    mine: dict[tuple[str, str], list[float]] = {}
    first, second = psnr_of(both[1]), psnr_of(both[0])
    for task in first:
        for name in first[task]:
            mine.setdefault((task[0], name), []).append(first[task][name] - second[task][name])
    d = np.array([np.mean(values) for values in mine.values()])
    test = one.overall["psnr"].test
    assert test.difference.n == len(d) == 12 + 9  # s0 of a and s0 of b are two people
    assert test.difference.mean == pytest.approx(d.mean())
    assert test.t == pytest.approx(ttest_rel(d, 0 * d).pvalue)
    assert test.wilcoxon == pytest.approx(wilcoxon(d).pvalue)
    limits = bootstrap((d,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(3))
    assert test.difference[1:3] == pytest.approx(tuple(limits.confidence_interval), abs=0.02)
    ours, ssim = sorted([test.t, one.overall["ssim"].test.t])
    both_holm = sorted(judged.test.t_holm for judged in one.overall.values())
    assert both_holm == pytest.approx([2 * ours, max(2 * ours, ssim)])


def test_copies_of_a_task_do_not_make_it_surer(tmp_path: Path) -> None:
    runs = []
    for label, skill, seed in (("Full", 0.0, 1), ("Plain", 0.4, 2)):
        one = [row for row in cases_of(skill, seed) if row[1:4] == ("a", "T1", "T2")]
        copies = [(*row[:2], f"T1+{more}", *row[3:]) for row in one for more in ("PD", "FLAIR", "DWI", "ADC")]
        runs.append((make_run(tmp_path / label, label, one), make_run(tmp_path / "many" / label, label, one + copies)))
    (alone,), (many,) = (compare_tasks(pair) for pair in zip(*runs, strict=True))
    assert len(many.subjects) == 5
    assert many.overall["psnr"].test.t == pytest.approx(alone.overall["psnr"].test.t)
    assert many.overall["psnr"].test.difference == pytest.approx(alone.overall["psnr"].test.difference)


def test_the_page_says_what_the_tests_found(both: tuple[Run, Run]) -> None:
    page = task_tests(both)
    text = text_of(page)
    apart = differences(both[1], both[0])
    assert "Plain against Full" in text
    better, worse = row_of(page, "T1 → T2"), row_of(page, "T2 → T1")
    assert better.startswith(f"T1 → T2 12 {apart['a', 'T1', 'T2'].mean():.2f} ")
    assert better.endswith("Plain better")
    assert worse.endswith("Full better")
    assert "\N{MINUS SIGN}" in worse
    assert row_of(page, "T1, T2 → FLAIR", figure=1).startswith("T1, T2 → FLAIR 10 ")
    assert "PSNR over 5 tasks of 21 subjects: Plain is " in text
    assert "By task, Plain is better in 1, worse in 1, undecided in 3." in text
    assert "Holm’s correction is over the 10 comparisons of single tasks" in text
    assert "PSNR, dB ↑ in the brain, Plain − Full: p after Holm's correction over 10 comparisons" in text
    assert "99.00" not in text
    assert page.count("<details open>") == 2


def test_a_third_run_is_held_against_the_first_too_in_one_family(both: tuple[Run, Run], tmp_path: Path) -> None:
    runs = (*both, make_run(tmp_path / "c", "Third", cases_of(1.0, 3)))
    found = compare_tasks(runs)
    assert [(one.run, one.reference) for one in found] == [("Plain", "Full"), ("Third", "Full")]
    assert "over the 20 comparisons of single tasks" in text_of(task_tests(runs))
    (alone,) = compare_tasks(both)
    smallest = min(judged.test.t_holm for judged in alone.tests.values())
    assert min(judged.test.t_holm for one in found for judged in one.tests.values()) == pytest.approx(2 * smallest)


def test_what_one_run_lacks_is_named(tmp_path: Path) -> None:
    ours, theirs = cases_of(0, 1), cases_of(2.0, 2)
    first = make_run(tmp_path / "a", "Full", [row for row in ours if row[1:4] != ("b", "T1", "T2")])
    second = make_run(
        tmp_path / "b", "Plain",
        [row for row in theirs if (row[0] not in ("s3", "s4") or row[1:3] != ("a", "T1")) and row[2] != "T1+T2"],
    )  # fmt: skip
    page = task_tests([first, second])
    text = text_of(page)
    assert "Plain has no cases of 1 task, which is not compared: a: T1, T2 → FLAIR." in text
    assert "Full has no cases of 1 task, which is not compared: b: T1 → T2." in text
    assert "Plain lacks cases of 1 task, compared on the subjects that both runs have: a: T1 → T2." in text
    assert "PSNR over 3 tasks of 21 subjects" in text
    assert row_of(page, "T1 → T2").startswith("T1 → T2 10 of 12 ")
    assert row_of(page, "T1, T2 → FLAIR").startswith("T1, T2 → FLAIR 0 of 10 – – ")
    assert row_of(page, "T1, T2 → FLAIR").endswith("no cases of Plain")
    assert row_of(page, "T1 → T2", which=1).endswith("no cases of Full")
    assert "over the 6 comparisons of single tasks" in text


def test_many_lacking_tasks_are_all_in_the_table(tmp_path: Path) -> None:
    tasks = [("a", "T1", f"X{number}", 8) for number in range(9)]
    runs = [
        make_run(tmp_path / "a", "Full", cases_of(0, 1, tasks)),
        make_run(tmp_path / "b", "Plain", cases_of(1, 2, tasks[:2])),
    ]
    page = task_tests(runs)
    assert "Plain has no cases of 7 tasks, which are not compared: a: T1 → X2; " in text_of(page)
    assert "; and 2 more, which the table names." in text_of(page)
    assert page.count("no cases of Plain</td>") == 2 * 7


def test_a_task_of_the_matrix_that_nobody_has_cases_of_is_named(both: tuple[Run, Run]) -> None:
    for run in both:
        with (run.folder / MATRIX).open("a", newline="") as file:
            csv.writer(file).writerow(("a", "DWI", "ADC", "brain", 4, 20.0, 1, 0.8, 0.1))
    page = task_tests(both)
    assert row_of(page, "DWI → ADC").endswith("no cases of Plain and Full")


def test_the_order_of_sources_makes_no_other_task(tmp_path: Path) -> None:
    task = [("a", "T1+T2", "FLAIR", 10)]
    first = make_run(tmp_path / "a", "Full", cases_of(0, 1, task))
    turned = [(*row[:2], "T2+T1", *row[3:]) for row in cases_of(1.0, 2, task)]
    (one,) = compare_tasks([first, make_run(tmp_path / "b", "Plain", turned)])
    assert list(one.subjects) == [("a", ("T1", "T2"), "FLAIR")]
    assert one.tests[TaskKey("a", ("T1", "T2"), "FLAIR"), "psnr"].test.difference.n == 10


def test_a_figure_without_meaning_leaves_its_subject_out(both: tuple[Run, Run]) -> None:
    path = both[0].folder / CASES
    path.write_text(re.sub(r"(s0,a,T1,T2,brain,[\d.]+),[\d.]+", r"\1,", path.read_text()))
    (one,) = compare_tasks(both)
    sizes = [one.tests[TaskKey("a", ("T1",), "T2"), name].test.difference.n for name in ("psnr", "ssim")]
    assert sizes == [12, 11]


def test_few_subjects_are_said_to_be_few(tmp_path: Path) -> None:
    tasks = [("a", "T1", "T2", 3), ("a", "T2", "T1", 3)]
    runs = [make_run(tmp_path / str(i), f"run {i}", cases_of(3.0 * i, i + 1, tasks)) for i in range(2)]
    text = text_of(task_tests(runs))
    assert "with 3 subjects, too few to call any difference significant . By task" in text
    assert (
        "With 3 subjects Wilcoxon's test cannot give less than 1 after the correction, whatever the methods do: "
        "no difference can be called significant here." in text
    )
    assert "Bootstrap intervals over fewer than 20 subjects are narrower than they should be." in text
    assert "better in 0, worse in 0, undecided in 2" in text


def test_of_few_and_many_subjects_only_the_few_are_told_nothing_of(tmp_path: Path) -> None:
    tasks = [("a", "T1", "T2", 25), ("b", "T1", "T2", 4), ("c", "T1", "T2", 1)]
    runs = [make_run(tmp_path / str(i), f"run {i}", cases_of(3.0 * i, i + 1, tasks)) for i in range(2)]
    page = task_tests(runs)
    text = text_of(page)
    # the two figures of a are surer than those of b, however sure these are: twice 2 / 2^4
    assert "With 4 subjects Wilcoxon's test cannot give less than 0.25 after the correction" in text
    assert "no difference can be called significant in 1 task." in text
    assert "1 task has one subject, which is no test: c: T1 → T2." in text
    assert row_of(page, "T1 → T2", which=2).endswith("one subject, no test")


def test_no_p_value_is_below_what_so_many_subjects_can_give() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        sizes = rng.integers(1, 12, 6)
        tests = [paired_test("", "", ("A", rng.integers(-2, 6, n).astype(float)), ("B", np.zeros(n))) for n in sizes]
        best = [paired_test("", "", ("A", np.arange(n) + 1.0), ("B", np.zeros(n))) for n in sizes]
        known = [not np.isnan(test.wilcoxon) for test in tests]
        assert known == [n > 1 for n in sizes]
        assert np.isnan(least_wilcoxon(tests)).tolist() == (sizes < 2).tolist()
        for test, bound in zip(corrected(tests), least_wilcoxon(tests), strict=True):
            assert np.isnan(bound) or test.wilcoxon_holm >= bound - 1e-9
        least = least_wilcoxon(best)
        order = np.sort([2.0 ** (1 - n) for n in sizes if n > 1])
        for bound, n in zip(least, sizes, strict=True):
            if n > 1:
                steps = [min(1.0, p * (len(order) - i)) for i, p in enumerate(order) if p <= 2.0 ** (1 - n)]
                assert bound == pytest.approx(max(steps))


def test_runs_that_say_the_same_do_not_differ(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, cases_of(0, 1)) for name in ("Full", "Again")]
    text = text_of(task_tests(runs))
    assert "PSNR over 5 tasks of 21 subjects: there is no difference. By task, Again is better in 0, worse in 0" in text


def test_one_matrix_is_not_compared(both: tuple[Run, Run], tmp_path: Path) -> None:
    without = Run(tmp_path, "AGI-Net", {}, {}, {}, {})
    assert task_tests(both[:1]) == ""
    assert task_tests([both[0], without]) == ""
    text = text_of(task_tests([without, *both]))
    assert "AGI-Net has no matrix of tasks." in text
    assert "Plain against Full" in text


def test_a_run_without_its_cases_is_named_and_the_others_compared(both: tuple[Run, Run], tmp_path: Path) -> None:
    third = make_run(tmp_path / "c", "Old <b>", cases_of(1.0, 3))
    (third.folder / CASES).unlink()
    said = "Old <b> has no matrix_cases.csv, so its tasks cannot be tested: evaluate it again."
    page = task_tests([third, *both])
    assert said in unescape(page)
    assert "<b> has" not in page
    assert "Plain against Full" in page
    assert unescape(task_tests([third, both[0]])) == f"<p class=small>{said}</p>"


FAULTS: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace("subject,", "patient,", 1), "lacks the columns subject: evaluate again"),
    (lambda text: text.replace(",psnr,ssim", ",mae,nmse", 1), "lacks the columns psnr, ssim: evaluate again"),
    (lambda text: text.splitlines()[0] + "\n", "has no rows"),
    (lambda text: text + "s1,a,T1", r", line \d+ is cut short"),
    (lambda text: text + "s77,a,T1,T2,brain,x,0.8\n", r", line \d+: could not convert string to float: 'x'"),
    (lambda text: text + "s77,a,T1,T2,brain,inf,0.8\n", r", line \d+: a figure is infinite"),
    (lambda text: text + "s1,a,T1,T2,brain,20,0.8\n", r", line \d+: s1 is there twice for a: T1 → T2, brain"),
    (lambda text: text + "s1,a,T2+T1,FLAIR,brain,20,0.8\n", r", line \d+: s1 is there twice for a: T1, T2 → FLAIR"),
]


@pytest.mark.parametrize(("harm", "said"), FAULTS)
def test_a_broken_file_of_cases_is_refused(both: tuple[Run, Run], harm: Callable[[str], str], said: str) -> None:
    path = both[1].folder / CASES
    path.write_text(harm(path.read_text()))
    with pytest.raises(ValueError, match=rf"matrix_cases\.csv ?{said}"):
        task_tests(both)


def test_by_a_papers_protocol_the_slices_are_tested(both: tuple[Run, Run]) -> None:
    runs = [Run(run.folder, run.label, {"protocol": {"region": "slice"}}, {}, {}, {}) for run in both]
    assert "in the slices' mean, Plain − Full" in text_of(task_tests(runs))
    (one,) = compare_tasks(runs)
    assert all(judged.test.difference.mean == 0 for judged in one.tests.values())


def test_names_cannot_put_markup_into_the_page(tmp_path: Path) -> None:
    tasks = [("<i>a", "T1", "<i>T2", 4), ("<i>a", "<i>T2", "T1", 4)]
    runs = [
        make_run(tmp_path / "a", "<i>A", cases_of(0, 1, tasks)),
        make_run(tmp_path / "b", "<i>B", cases_of(0, 2, tasks[:1])),
    ]
    page = task_tests(runs)
    assert "<i>" not in page
    assert "&lt;i&gt;T2" in page


def test_a_matrix_with_an_empty_figure_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "Full", cases_of(0, 1))
    path = run.folder / MATRIX
    path.write_text(path.read_text().replace("brain,1,25.0,,0.8", "brain,1,25.0,,", 1))
    assert "–</td>" in task_maps([run])


def test_the_report_of_two_runs_has_the_tests_and_a_long_table_is_folded(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / folder.name for folder in two_runs]
    tasks = [("a", "T1", f"X{number}", 8) for number in range(50)]
    for seed, (folder, copy) in enumerate(zip(two_runs, folders, strict=True)):
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("volumes"))
        make_run(copy, "", cases_of(seed, seed + 1, tasks))
    arguments = ["report", "--runs", *map(str, folders), "--out", str(tmp_path / "out"), "--no-viewer"]
    assert main(arguments) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '<a href="#task-tests">Tests over tasks</a>' in page
    section = re.findall(r"<section id=task-tests><h2>Tests over tasks</h2>.*?</section>", page, flags=re.S)
    assert len(section) == 1
    assert "ResUnet against AGI-Net" in section[0]
    assert section[0].count("<details><summary>") == 2
    (folders[1] / CASES).write_text("a,b\n1,2\n")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "matrix_cases.csv lacks the columns" in capsys.readouterr().err
