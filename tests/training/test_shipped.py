"""What ships beside the weights: the packages it needs are named, and no more than that is there."""

from importlib.metadata import version

from training.shipped import PIPELINE, requirements, shipped_files, shipped_source


def test_files_come_after_what_they_need() -> None:
    files = shipped_files()
    assert files[-1] == PIPELINE and len(set(files)) == len(files) > 2
    assert "from training" not in shipped_source() and "from ingest" not in shipped_source()


def test_the_packages_of_the_shipped_text_are_named_as_they_are_installed() -> None:
    lines = dict(line.split("==") for line in requirements(shipped_source()).splitlines())
    assert sorted(lines) == ["diffusers", "numpy", "pillow", "torch", "transformers"]
    assert lines["diffusers"] == version("diffusers")


def test_a_build_is_no_version_and_the_standard_library_no_package() -> None:
    assert requirements("import json, torch\nfrom PIL import Image\n").count("\n") == 2
    assert "+" not in requirements("import torch")


def test_what_a_model_needs_besides_is_named_too() -> None:
    lines = requirements("import json", "yaml", "no_such_module").splitlines()
    assert [line.lower() for line in lines] == [f"pyyaml=={version('PyYAML')}"]
