"""An embedder and a data set give a report; two reports, a comparison."""

from reidkit.evaluate.comparison import Comparison, compare_reports
from reidkit.evaluate.embedding import EmbeddedCrops, embed_crops, embed_split
from reidkit.evaluate.evaluation import evaluate, rank_embedded
from reidkit.evaluate.report import FALSE_POSITIVE_RATES, RANKS, EmbeddedBy, Report

__all__ = [
    "FALSE_POSITIVE_RATES",
    "RANKS",
    "Comparison",
    "EmbeddedBy",
    "EmbeddedCrops",
    "Report",
    "compare_reports",
    "embed_crops",
    "embed_split",
    "evaluate",
    "rank_embedded",
]
