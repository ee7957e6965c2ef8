"""The watched folder of specs: what is in force after each change, and what is told of errors."""

from __future__ import annotations

import pytest

from fakes.cluster import write_spec
from fakes.config_map import ConfigMap
from proa.errors import SettingsError, SpecError
from proa.frontend.specs import FILES_MAX, SpecFolder, load_files


@pytest.fixture
def mount(tmp_path):
    return ConfigMap(tmp_path / "models")


@pytest.fixture
def errors():
    return []


@pytest.fixture
def folder(mount, errors):
    return SpecFolder(mount.folder, errors.append)


def text(tmp_path, redundancy="policy: none", name="digits"):
    return write_spec(tmp_path, redundancy, name).read_text(encoding="utf-8")


def policies(found):
    return {name: spec.redundancy.policy for name, spec in found.items()}


def test_models_are_added_changed_and_removed(tmp_path, mount, folder, errors):
    assert folder.read() == {}
    mount.write(digits=text(tmp_path))
    assert policies(folder.read()) == {"digits": "none"}
    mount.write(digits=text(tmp_path, "policy: auto"), letters=text(tmp_path, name="letters"))
    assert policies(folder.read()) == {"digits": "auto", "letters": "none"}
    mount.write(letters=text(tmp_path, name="letters"))
    assert policies(folder.read()) == {"letters": "none"}
    assert errors == []


def test_a_change_that_changes_nothing_gives_an_equal_spec(tmp_path, mount, folder):
    mount.write(digits=text(tmp_path))
    before = folder.read()
    mount.write(digits=text(tmp_path) + "# a remark\n")
    assert folder.read() == before


@pytest.mark.parametrize("broken", ["", "apiVersion: [", "policy: none", "\x00", "é: 1"])
def test_a_broken_file_keeps_the_last_good_model(tmp_path, mount, folder, errors, broken):
    mount.write(digits=text(tmp_path))
    good = folder.read()
    mount.write(digits=broken)
    assert folder.read() == good
    assert folder.read() == good
    assert len(errors) == 1
    assert "digits.yaml" in errors[0]
    assert folder.broken == 1
    mount.write(digits=text(tmp_path, "policy: auto"))
    assert policies(folder.read()) == {"digits": "auto"}
    assert (folder.broken, len(errors)) == (0, 1)


def test_an_error_names_file_and_line(tmp_path, mount, folder, errors):
    lines = text(tmp_path).replace("maxBatch", "maxBatsh").splitlines()
    mount.write(digits="\n".join(lines), letters=text(tmp_path, name="letters"))
    assert policies(folder.read()) == {"letters": "none"}
    line = next(i for i, one in enumerate(lines, 1) if "maxBatsh" in one)
    assert f"digits.yaml:{line}: " in errors[0]


def test_the_same_error_after_a_good_file_is_told_again(tmp_path, mount, folder, errors):
    for good in (False, True, False):
        mount.write(digits=text(tmp_path) if good else "")
        folder.read()
    assert len(errors) == 2


def test_a_model_in_two_files_is_told_and_served_once(tmp_path, mount, folder, errors):
    mount.write(a=text(tmp_path), b=text(tmp_path, "policy: auto"))
    assert policies(folder.read()) == {"digits": "none"}
    folder.read()
    (error,) = errors
    assert "b.yaml: model 'digits' stands in" in error


def test_a_folder_that_cannot_be_read_changes_nothing(tmp_path, errors):
    folder = SpecFolder(tmp_path / "nothing", errors.append)
    assert folder.read() is None
    assert folder.read() is None
    assert len(errors) == 1


def test_too_many_files_are_refused_with_the_limit(mount, folder, errors):
    for i in range(FILES_MAX + 1):
        (mount.folder / f"{i}.yaml").touch()
    assert folder.read() is None
    assert f"the limit is {FILES_MAX}" in errors[0]


def test_given_files_are_strict(tmp_path):
    path = write_spec(tmp_path)
    assert list(load_files(f"{path}, ")) == ["digits"]
    with pytest.raises(SettingsError, match="different names"):
        load_files(f"{path},{path}")
    with pytest.raises(SpecError, match="nothing"):
        load_files(str(tmp_path / "nothing.yaml"))
