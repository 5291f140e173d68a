"""What a flow expects of the output of its last model, as its author writes it below ``expect``."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from flows_engine.definition.leniency import Text, as_list

_MODALITY: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
_MOST_FILES: Final = 1_000_000


def modality(written: str) -> str:
    """Return a modality in capitals, without the spaces around it.

    Raises ``ValueError`` for what is no code string (PS3.5 6.2, CS).
    """
    code = written.strip().upper()
    if not _MODALITY.fullmatch(code):
        raise ValueError("is no modality like CT or RTSTRUCT: 1 to 16 letters, digits, spaces and underscores")
    return code


Modality = Annotated[Text, AfterValidator(modality)]


def _is_unset(value: object) -> bool:
    return not value


class Expect(BaseModel):
    """What must hold of the files that the last model left; an output of which it does not is not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Those that are not asked for are left out of what is dumped: one that is new here changes no digest.
    min_files: int = Field(default=0, ge=0, le=_MOST_FILES, exclude_if=_is_unset)
    dicom_only: bool = Field(default=False, exclude_if=_is_unset)
    same_patient: bool = True
    same_study: bool = Field(default=False, exclude_if=_is_unset)
    references_exist: bool = Field(default=False, exclude_if=_is_unset)
    modality: Annotated[tuple[Modality, ...], BeforeValidator(as_list)] = Field(
        default=(), min_length=1, exclude_if=_is_unset
    )

    @property
    def of_instances(self) -> bool:
        """Tell whether anything is expected that is seen only inside a DICOM file."""
        return self.same_patient or self.same_study or self.references_exist or bool(self.modality)
