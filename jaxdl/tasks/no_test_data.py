"""Tasks without test data: what they come to, evaluators find out by playing."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdl.errors import UserError
from jaxdl.task import Batch, Mean


class NoTestData:
    """The third function of a task which learns from no data, so that there are no batches of it
    to be evaluated on.

    Attributes:
      evaluator: the one that says how good it is, for the error.
    """

    evaluator: ClassVar[str] = "episodes.Episodes"
    not_applicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("masks", "evaluation"), "there is no test data")

    def evaluate(self, state: Any, batch: Batch) -> Mapping[str, Mean]:
        raise UserError(f"{type(self).__name__} has no test data to be evaluated on; its evaluator "
                        f"is {self.evaluator}.")
