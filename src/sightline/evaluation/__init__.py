"""Question files, the scores of a model's answers with intervals, and paired comparisons."""

from .evaluate import Answerer, evaluate, scores_table
from .metrics import Estimate, YesNoScores
from .questions import Question, read_questions
from .scores import Comparison, Prediction, Scores, compare, read_predictions, read_scores

__all__ = [
    "Answerer",
    "Comparison",
    "Estimate",
    "Prediction",
    "Question",
    "Scores",
    "YesNoScores",
    "compare",
    "evaluate",
    "read_predictions",
    "read_questions",
    "read_scores",
    "scores_table",
]
