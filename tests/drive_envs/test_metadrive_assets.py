import hashlib
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from drive_envs.metadrive_assets import (
    COPIED,
    GENERATED,
    WHEEL_ROOT,
    AssetsError,
    asphalt,
    assets_missing,
    build_assets,
    ensure_assets,
    main,
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the layout of 0.3.0.1: every file holds its own name, one is not ours."""
    path = tmp_path_factory.mktemp("wheel") / "metadrive_simulator-0.3.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for source in (*COPIED.values(), "models/vehicle/lada/vehicle.gltf"):
            archive.writestr(str(WHEEL_ROOT / source), source)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def built(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("built") / "assets"
    return build_assets(wheel, destination, wheel_sha256=digest(wheel))


def test_a_build_is_complete_and_holds_nothing_else(built):
    files = contents(built)
    assert set(files) == {*COPIED, *GENERATED, "NOTICE.txt", "version.txt"}
    assert all(files[name].decode() == source for name, source in COPIED.items())
    assert not assets_missing(built)


def test_every_vehicle_model_has_its_licence_in_the_notice(built):
    vehicles = {path.name for path in (built / "models").iterdir() if path.is_dir()}
    assert vehicles == {"130", "beetle"}
    notice = (built / "NOTICE.txt").read_text()
    for vehicle in vehicles:
        _, _, paragraph = notice.partition(f"models/{vehicle}\n")
        assert "CC-BY-4.0" in paragraph.partition("models/")[0]


def test_building_again_replaces_an_older_folder_and_gives_the_same_bytes(wheel, built, tmp_path):
    destination = tmp_path / "assets"
    destination.mkdir()
    (destination / "stale").touch()
    for _ in range(2):
        build_assets(wheel, destination, wheel_sha256=digest(wheel))
        assert contents(destination) == contents(built)
    assert list(tmp_path.iterdir()) == [destination]


def test_a_damaged_wheel_is_refused_and_leaves_the_older_folder_alone(wheel, tmp_path):
    destination = tmp_path / "assets"
    destination.mkdir()
    (destination / "older").touch()
    damaged = tmp_path / wheel.name
    damaged.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(AssetsError, match=rf"{wheel.name} has sha256 .* download .*0\.3\.0\.1"):
        build_assets(damaged, destination, wheel_sha256=digest(wheel))
    assert [path.name for path in destination.iterdir()] == ["older"]


def test_a_wheel_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AssetsError, match=r"no wheel at .*/absent\.whl: run cluster/setup\.sh"):
        build_assets(tmp_path / "absent.whl", tmp_path / "assets")


@pytest.mark.parametrize("name", ["version.txt", "models/beetle/vehicle.gltf"])
def test_a_missing_file_is_noticed(wheel, tmp_path, name):
    destination = build_assets(wheel, tmp_path / "assets", wheel_sha256=digest(wheel))
    (destination / name).unlink()
    assert assets_missing(destination)


def test_the_assets_of_another_version_count_as_missing(wheel, tmp_path):
    destination = build_assets(wheel, tmp_path / "assets", wheel_sha256=digest(wheel))
    (destination / "version.txt").write_text("0.4.2\n")
    with pytest.raises(AssetsError, match=rf"missing at {destination}: run cluster/setup\.sh"):
        ensure_assets(destination)


def test_the_installed_assets_are_in_place():
    ensure_assets()


def test_the_command_reports_a_wheel_it_cannot_use(tmp_path, caplog):
    assert main([str(tmp_path / "absent.whl")]) == 1
    assert "absent.whl" in caplog.text


def test_images_have_the_layout_that_metadrive_reads(built):
    heights = cv2.imread(str(built / "textures/terrain/heightfield.png"), cv2.IMREAD_UNCHANGED)
    assert heights is not None
    assert heights.dtype == np.uint16
    assert heights.shape == (2048, 2048)
    for name in GENERATED.keys() - {"textures/terrain/heightfield.png"}:
        image = cv2.imread(str(built / name), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_asphalt_repeats_without_a_seam():
    grey = asphalt(size=256)[..., 0].astype(float)
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis)).mean()
        seam = np.abs(grey.take(0, axis) - grey.take(-1, axis)).mean()
        assert seam < 1.15 * steps
