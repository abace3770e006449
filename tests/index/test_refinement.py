import numpy as np
import pytest

from reidkit.errors import ConfigError, InputError
from reidkit.index import KReciprocal, Refinement, augment_gallery, expand_queries, refined, rerank
from reidkit.metrics.distance import distance_matrix


def everything(distances):
    return distances.block(slice(0, distances.shape[0]))


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(2)
    return [rng.normal(size=(count, 5)).astype(np.float32) for count in (6, 17)]


@pytest.mark.parametrize(
    ("refinement", "words"),
    [
        (Refinement(), "none"),
        (Refinement(5, 5, rerank=KReciprocal()), "DBA 5, AQE 5, k-reciprocal 20/6/0.3"),
        (Refinement(query_expansion=5, alpha=3.0), "αQE 5 (alpha 3)"),  # noqa: RUF001
        (Refinement(2, 3, 0.5), "DBA 2 (alpha 0.5), αQE 3 (alpha 0.5)"),  # noqa: RUF001
        (Refinement(rerank=KReciprocal(7, 1, 0.0)), "k-reciprocal 7/1/0"),
    ],
)
def test_is_said_in_words(refinement, words):
    assert refinement.in_words() == words


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nothing_is_plain_distances(embeddings, metric):
    query, gallery = embeddings
    found = everything(refined(query, gallery, Refinement(), metric=metric))
    np.testing.assert_array_equal(found, distance_matrix(query, gallery, metric))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_gallery_is_augmented_first_and_then_expands_the_queries(embeddings, metric):
    query, gallery = embeddings
    moved = augment_gallery(gallery, neighbors=2, alpha=1.5, metric=metric)
    asked = expand_queries(query, moved, neighbors=3, alpha=1.5, metric=metric)
    both = refined(query, gallery, Refinement(2, 3, 1.5), metric=metric)
    np.testing.assert_array_equal(everything(both), distance_matrix(asked, moved, metric))
    how = KReciprocal(5, 2, 0.4)
    all_three = refined(query, gallery, Refinement(2, 3, 1.5, how), metric=metric)
    np.testing.assert_array_equal(everything(all_three), everything(rerank(asked, moved, how, metric=metric)))


def test_each_step_alone(embeddings):
    query, gallery = embeddings
    moved = augment_gallery(gallery, neighbors=2)
    np.testing.assert_array_equal(everything(refined(query, gallery, Refinement(2))), distance_matrix(query, moved))
    asked = expand_queries(query, gallery, neighbors=2)
    only = refined(query, gallery, Refinement(query_expansion=2))
    np.testing.assert_array_equal(everything(only), distance_matrix(asked, gallery))
    how = KReciprocal(4, 3)
    only = refined(query, gallery, Refinement(rerank=how))
    np.testing.assert_array_equal(everything(only), everything(rerank(query, gallery, how)))


def test_progress_and_memory_reach_every_step(embeddings):
    query, gallery = embeddings
    totals = []
    refinement = Refinement(2, 2, rerank=KReciprocal(4, 2))
    refined(query, gallery, refinement, progress=lambda _, total: totals.append(total))
    assert list(dict.fromkeys(totals)) == [17, 6, 46]
    for one in (Refinement(2), Refinement(0, 2), Refinement(rerank=KReciprocal(4, 2))):
        with pytest.raises(InputError, match="limit of memory is too small"):
            refined(query, gallery, one, memory=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"database_augmentation": -1}, r"neighbours of database augmentation cannot be negative\n  got: -1"),
        ({"query_expansion": -2}, r"neighbours of query expansion cannot be negative\n  got: -2"),
        ({"query_expansion": 2, "alpha": -1.0}, r"alpha of query expansion is out of range\n  got: -1"),
        ({"query_expansion": 2, "alpha": float("nan")}, r"alpha of query expansion is out of range\n  got: nan"),
        ({"alpha": 3.0}, r"none to weigh\n  got: alpha 3"),
    ],
)
def test_what_means_nothing_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Refinement(**arguments)
