"""Images looked at with a task: which labels to mend, and which images to label next."""

from torchsnow.review.findings import Review, review_data, validate_reviewable
from torchsnow.review.moves import Move, move_files, plan_moves, plan_undo, record_next_to, write_moves, write_record
from torchsnow.review.page import review_page
from torchsnow.review.suggest import Suggestion, suggest_images

__all__ = [
    "Move",
    "Review",
    "Suggestion",
    "move_files",
    "plan_moves",
    "plan_undo",
    "record_next_to",
    "review_data",
    "review_page",
    "suggest_images",
    "validate_reviewable",
    "write_moves",
    "write_record",
]
