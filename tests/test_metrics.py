from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from fullyconv import metrics
from fullyconv.metrics import ConfusionMatrix

VOID = 255
NAMES = ("background", "cat", "dog")
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


@st.composite
def labellings(draw: st.DrawFn, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Truth with void in it, and a prediction without."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    values = st.sampled_from([*range(classes), VOID])
    return draw(hnp.arrays(np.uint8, shape, elements=values)), draw(
        hnp.arrays(np.int64, shape, elements=st.integers(0, classes - 1))
    )


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def matrix_of(*pairs: tuple[np.ndarray, np.ndarray], classes: int = 4) -> ConfusionMatrix:
    matrix = ConfusionMatrix(names(classes))
    for truth, predicted in pairs:
        matrix.update(truth, predicted, VOID)
    return matrix


def test_an_example_worked_by_hand() -> None:
    # Truth: six background, three cat, one dog, two void. Of the background, one pixel is called cat and one dog; of
    # the cat, one is called background; the dog is called cat.
    truth = np.array([[0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 255, 255]], np.uint8)
    predicted = np.array([[0, 0, 0, 0, 1, 2], [1, 1, 0, 1, 2, 0]], np.uint8)
    matrix = ConfusionMatrix(NAMES)
    matrix.update(truth, predicted, VOID)

    assert matrix.counts.tolist() == [[4, 1, 1], [1, 2, 0], [0, 1, 0]]
    assert matrix.pixel_accuracy == pytest.approx(6 / 10)
    assert matrix.accuracy == pytest.approx([4 / 6, 2 / 3, 0])
    assert matrix.mean_accuracy == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    # IU = hits / (true + predicted - hits): 4 / (6 + 5 - 4), 2 / (3 + 4 - 2), 0 / (1 + 1 - 0)
    assert matrix.iu == pytest.approx([4 / 7, 2 / 5, 0])
    assert matrix.mean_iu == pytest.approx((4 / 7 + 2 / 5) / 3)
    assert matrix.fw_iu == pytest.approx((6 * 4 / 7 + 3 * 2 / 5) / 10)


def test_as_dict_is_the_issues_json() -> None:
    matrix = ConfusionMatrix(NAMES, [[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert json.loads(json.dumps(matrix.as_dict(), allow_nan=False)) == {
        "pixel_accuracy": 7 / 8,
        "mean_accuracy": (3 / 4 + 1) / 2,
        "mean_iu": (3 / 4 + 4 / 5) / 2,
        "fw_iu": (4 * 3 / 4 + 4 * 4 / 5) / 8,
        "per_class": {
            "background": {"iu": 3 / 4, "accuracy": 3 / 4, "pixels": 4, "predicted": 3},
            "cat": {"iu": 4 / 5, "accuracy": 1.0, "pixels": 4, "predicted": 5},
            "dog": {"iu": None, "accuracy": None, "pixels": 0, "predicted": 0},
        },
        "absent": ["dog"],
    }


def test_an_absent_class_is_left_out_of_the_means_and_named_even_where_it_was_predicted() -> None:
    matrix = ConfusionMatrix(NAMES, [[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    assert matrix.absent == ("dog",)
    assert math.isnan(matrix.iu[2])
    assert math.isnan(matrix.accuracy[2])
    # The false dog still costs the background its pixel.
    assert matrix.mean_iu == pytest.approx((3 / 4 + 1) / 2)
    assert matrix.mean_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert matrix.fw_iu == pytest.approx((4 * 3 / 4 + 4) / 8)
    assert matrix.as_dict()["per_class"]["dog"]["predicted"] == 1


def test_nothing_counted_has_no_scores_and_says_so_in_json() -> None:
    matrix = ConfusionMatrix(NAMES)
    matrix.update(np.full((2, 2), VOID, np.uint8), np.zeros((2, 2), np.uint8), VOID)
    scores = matrix.as_dict()
    assert [scores[k] for k in ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu")] == [None] * 4
    assert scores["absent"] == list(NAMES)
    assert "3 classes, 0 pixels" in repr(matrix)


@given(labellings(classes=4))
def test_counts_and_scores_equal_scikit_learns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    counted = truth != VOID
    if not counted.any():
        return
    t, p = truth[counted], predicted[counted]
    matrix = matrix_of(pair)
    present = np.unique(t)
    assert matrix.counts.tolist() == confusion_matrix(t, p, labels=range(4)).tolist()
    assert matrix.pixel_accuracy == pytest.approx(accuracy_score(t, p))
    iu = jaccard_score(t, p, labels=present, average=None, zero_division=0)
    assert matrix.iu[present] == pytest.approx(iu)
    assert matrix.mean_iu == pytest.approx(iu.mean())
    assert matrix.fw_iu == pytest.approx(jaccard_score(t, p, labels=present, average="weighted", zero_division=0))
    if set(p) <= set(present) and len(present) > 1:  # elsewhere scikit-learn warns
        assert matrix.mean_accuracy == pytest.approx(balanced_accuracy_score(t, p))


@given(labellings(), labellings(), labellings())
def test_merging_is_associative_and_equals_one_pass_over_everything(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    third: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b, c = matrix_of(first), matrix_of(second), matrix_of(third)
    whole = matrix_of(first, second, third).counts.tolist()
    assert ((a + b) + c).counts.tolist() == whole
    assert (a + (b + c)).counts.tolist() == whole
    assert (c + a + b).counts.tolist() == whole
    assert a.counts.tolist() == matrix_of(first).counts.tolist()  # adding changes neither side


@given(labellings(), st.permutations(range(4)))
def test_renumbering_the_classes_renumbers_the_scores(pair: tuple[np.ndarray, np.ndarray], order: list[int]) -> None:
    renumber = np.array([*order, *range(4, 256)])
    matrix, other = matrix_of(pair), matrix_of((renumber[pair[0]], renumber[pair[1]]))
    assert other.iu[order] == pytest.approx(matrix.iu, nan_ok=True)
    assert other.accuracy[order] == pytest.approx(matrix.accuracy, nan_ok=True)
    for score in ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu"):
        assert getattr(other, score) == pytest.approx(getattr(matrix, score), nan_ok=True)


@given(labellings())
def test_a_perfect_prediction_scores_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    matrix = matrix_of((truth, np.where(truth == VOID, predicted, truth)))
    if matrix.counts.any():
        assert matrix.pixel_accuracy == matrix.mean_accuracy == matrix.mean_iu == 1.0
        assert matrix.fw_iu == pytest.approx(1.0)


@given(labellings())
def test_scores_lie_between_0_and_1_and_iu_is_never_above_accuracy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    matrix = matrix_of(pair)
    present = matrix.pixels > 0
    assert (matrix.iu[present] >= 0).all()
    assert (matrix.iu[present] <= matrix.accuracy[present]).all()
    assert (matrix.accuracy[present] <= 1).all()


@given(hnp.arrays(np.int64, (3, 3), elements=st.integers(0, 10**17)))
def test_huge_counts_neither_overflow_nor_lose_their_scores(counts: np.ndarray) -> None:
    matrix = ConfusionMatrix(NAMES, counts) + ConfusionMatrix(NAMES, counts)
    exact = [[2 * int(n) for n in row] for row in counts]
    assert matrix.counts.tolist() == exact
    total = sum(map(sum, exact))
    if total:
        assert matrix.pixel_accuracy == pytest.approx(sum(exact[i][i] for i in range(3)) / total)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type_is_counted_alike(dtype: type) -> None:
    truth, predicted = np.array([0, 1, 2, 2, 100]), np.array([0, 2, 2, 1, 100])
    matrix = ConfusionMatrix(NAMES)
    matrix.update(truth.astype(dtype), predicted.astype(dtype), void=100)
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 1]]


def test_void_may_be_negative_or_beyond_the_labels_type() -> None:
    matrix = ConfusionMatrix(NAMES)
    matrix.update(np.array([0, -1]), np.array([0, 1]), void=-1)
    matrix.update(np.array([0, 1], np.uint8), np.array([0, 1], np.uint8), void=65535)
    assert matrix.counts.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_void_may_be_the_first_number_after_the_classes() -> None:
    matrix = ConfusionMatrix(NAMES)
    matrix.update(np.array([0, len(NAMES)]), np.array([0, 1]), void=len(NAMES))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@settings(max_examples=20)
@given(labellings(), st.integers(1, 5))
def test_counting_in_chunks_equals_counting_at_once(pair: tuple[np.ndarray, np.ndarray], chunk: int) -> None:
    whole = matrix_of(pair).counts.tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        assert matrix_of(pair).counts.tolist() == whole


def test_a_picture_larger_than_a_chunk_is_counted_whole() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 21, (2, 700, 1001), dtype=np.uint8)
    matrix = matrix_of((truth, predicted), classes=21)
    assert matrix.counts.tolist() == confusion_matrix(truth.ravel(), predicted.ravel()).tolist()


def test_more_than_255_classes_are_counted() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 300, (2, 64, 64), dtype=np.uint16)
    matrix = ConfusionMatrix(names(300))
    matrix.update(truth, predicted, void=65535)
    assert matrix.counts.tolist() == confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(300)).tolist()


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([[0, 1]], [[0], [1]], r"truth is \(1, 2\), prediction \(2, 1\); expected one shape"),
        ([0.0, 1.0], [0, 1], "truth: got float64; expected whole numbers"),
        ([0, 1], [True, False], "prediction: got bool; expected whole numbers"),
        ([0, 3, 3], [0, 1, 2], "truth: 2 pixels hold 3 or the like; expected 0..2, and 255 in the truth alone"),
        ([0, -1], [0, 1], "truth: 1 pixels hold -1"),
        ([0, 1], [0, 255], "prediction: 1 pixels hold 255 or the like; expected 0..2, and 255 in the truth alone"),
        ([0, 1], [0, -1], "prediction: 1 pixels hold -1"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused_and_nothing_is_counted(
    truth: list[float], predicted: list[float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = ConfusionMatrix(NAMES)
    monkeypatch.setattr(metrics, "CHUNK", 1)
    with pytest.raises(ValueError, match=message):
        matrix.update(truth, predicted, VOID)
    assert matrix.counts.sum() == 0


def test_void_in_the_prediction_is_allowed_only_where_the_truth_is_void() -> None:
    matrix = ConfusionMatrix(NAMES)
    matrix.update(np.array([0, VOID]), np.array([0, VOID]), VOID)
    assert matrix.counts.sum() == 1


@pytest.mark.parametrize(("void", "name"), list(enumerate(NAMES)))
def test_a_class_cannot_be_void(void: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"void: got {void}, which is class '{name}'"):
        ConfusionMatrix(NAMES).update(np.array([0]), np.array([0]), void=void)


def test_counts_of_different_classes_are_not_added() -> None:
    with pytest.raises(ValueError, match=r"cannot add counts of \('a', 'b'\) to counts of \('b', 'a'\)"):
        ConfusionMatrix(["b", "a"]) + ConfusionMatrix(["a", "b"])
    with pytest.raises(TypeError):
        ConfusionMatrix(["a"]) + 1  # type: ignore[operator]


@pytest.mark.parametrize("classes", [[], ["a", "a"]])
def test_classes_must_be_named_once_each(classes: list[str]) -> None:
    with pytest.raises(ValueError, match="expected one name or more, each once"):
        ConfusionMatrix(classes)


@pytest.mark.parametrize("counts", [[[1, 2]], [[1, -1], [0, 0]], [[0.5, 1], [1, 1]]])
def test_counts_must_be_a_table_of_whole_numbers(counts: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 2\) whole numbers"):
        ConfusionMatrix(["a", "b"], counts)
