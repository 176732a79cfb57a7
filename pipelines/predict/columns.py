"""The columns of an input that make its texts: those that the user or the model names, or the usual ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.errors import UserError
from trainer.data.columns import BadRow, Columns, find_text_columns, is_number
from trainer.data.tables import SEPARATORS, csv_records


@dataclass(frozen=True)
class TextColumns:
    """Names of columns, or their numbers from 1, which hold for a CSV file without a header."""

    chosen: tuple[str, ...] = ()
    """By the user."""
    trained: tuple[str, ...] = ()
    """By the model, which was trained on them."""

    @property
    def _numbers(self) -> tuple[str, ...]:
        wanted = self.chosen or self.trained
        return wanted if all(map(str.isdecimal, wanted)) else ()

    def find(self, source: str, names: Sequence[str], *, all_there: bool = True) -> tuple[str, ...]:
        """Returns the names of the text columns, in capitals or not; UserError when one is missing, or all."""
        known = {name.lower(): name for name in reversed(names)}
        wanted = self.chosen or self.trained
        found = tuple(name if name in names else known.get(name.lower(), name) for name in wanted)
        if found and (all if all_there else any)(name in names for name in found):
            return found
        if not self.chosen and (not self.trained or self._numbers):
            return find_text_columns(source, Columns(), names)
        try:
            return find_text_columns(source, Columns(found), names)
        except UserError as error:
            trained = f"; the model was trained on {', '.join(wanted)}: name other columns with --text-column"
            raise UserError(f"{error}{'' if self.chosen else trained}") from None

    def without_header(self, first: Sequence[str]) -> Sequence[str]:
        """Returns the numbers of the columns of a CSV file whose first record is a row; none where it is a header."""
        if not self._numbers or not all(1 <= int(number) <= len(first) for number in self._numbers):
            return ()
        is_row = self.chosen or any(map(is_number, first))  # as in the training rows
        return [str(number) for number in range(1, len(first) + 1)] if is_row else ()

    def names_of_csv(self, source: str, first: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...], bool]:
        """Returns the names of all columns by the first record, those of the text, and True if the record is a header."""
        names = [name.strip() for name in first]
        twice = [name for name in names if names.count(name) > 1]
        try:
            texts = self.find(source, names)
        except UserError as error:
            if numbers := self.without_header(first):
                return numbers, self._numbers, False
            named = self.chosen or (self.trained and not self._numbers)
            hint = "" if named else ". If this is a row and no header, give numbers: --text-column 2,3"
            raise UserError(f"{error}{hint}") from None
        if twice:
            raise UserError(f"{source}: two columns are called {twice[0]!r}; rename all but one")
        return names, texts, True

    def separator(self, lines: Iterable[str]) -> str:
        """Returns the first separator by which the first of these lines has the text columns, or else a comma."""
        for separator in SEPARATORS:
            _, first = next(csv_records(lines, separator), (1, BadRow("empty", "", 1)))
            if not isinstance(first, BadRow):
                try:
                    self.names_of_csv("", first)
                except UserError:
                    continue
                return separator
        return ","
