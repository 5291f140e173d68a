from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
import yaml
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from flows_engine.definition.schema import FlowDefinition
from tests import factories


def test_a_written_study_reads_back_as_one_study(tmp_path: Path):
    files = factories.write_instances(factories.ct_study([2, 3], rows=512, columns=512), tmp_path)

    instances = [pydicom.dcmread(file) for file in files]
    assert len({instance.StudyInstanceUID for instance in instances}) == 1
    assert len({instance.SeriesInstanceUID for instance in instances}) == 2
    assert len({instance.SOPInstanceUID for instance in instances}) == 5
    assert {instance.pixel_array.shape for instance in instances} == {(512, 512)}
    assert all(file.stat().st_size > 512 * 512 * 2 for file in files)


def test_values_replace_elements_and_none_leaves_them_out():
    instance = factories.ct_slice(PatientID=None, SeriesDescription="Head")

    assert "PatientID" not in instance
    assert instance.SeriesDescription == "Head"


def test_other_transfer_syntaxes_keep_the_pixels(tmp_path: Path):
    plain = factories.ct_slice(rows=32, columns=32)
    pixels = plain.pixel_array.tobytes()
    made = [factories.as_rle(plain), factories.as_implicit(factories.ct_slice(rows=32, columns=32))]

    read = [pydicom.dcmread(file) for file in factories.write_instances(made, tmp_path)]
    assert [instance.file_meta.TransferSyntaxUID for instance in read] == [RLELossless, ImplicitVRLittleEndian]
    assert [instance.pixel_array.tobytes() for instance in read] == [pixels, pixels]


def test_a_leak_is_found_in_any_case():
    assert factories.leaked_canaries(f"patient {factories.CANARY_NAME.lower()}") == ["CANARYSURNAME", "QUILLON"]
    assert factories.leaked_canaries("study 0193e4c2, 60 instances") == []


@pytest.mark.parametrize("keys", [{}, {"priority": 4, "models": [factories.copying_model_keys(timeout=2)]}])
def test_a_made_flow_is_a_valid_definition(keys: dict[str, object]):
    made = yaml.safe_load(factories.flow_yaml(**keys))

    definition = FlowDefinition.model_validate({"name": "made", **made})

    assert definition.models[0].docker_kwargs.image == "busybox"
    assert definition.models[0].pull_before_exec is False
