"""What MetaDrive needs changed to render fast, and at all, on a machine without a GPU.

Mesa's software renderer (llvmpipe) has at most 4x multi-sampling where MetaDrive asks for 16x,
emulates anisotropic filtering at a hundredth of the speed, and pays for each vertex: the terrain's
fine mesh, the shadow passes and the cars' 10 to 250 thousand triangles. `patch` must run before
MetaDrive makes its window. It changes MetaDrive in this process only.
"""

import os
from functools import partial
from typing import Any

import cv2
import numpy as np
from direct.showbase.Loader import Loader
from metadrive.constants import MapTerrainSemanticColor, TerrainProperty
from metadrive.engine.core import engine_core
from metadrive.engine.core.pssm import PSSM
from metadrive.engine.core.terrain import Terrain
from metadrive.type import MetaDriveType
from panda3d.core import (
    GraphicsPipe,
    GraphicsPipeSelection,
    NodePath,
    SamplerState,
    Texture,
    loadPrcFileData,
)

from drive_envs.metadrive_meshes import decimate

DISPLAY = "p3headlessgl"  # OpenGL through EGL: needs no X server
PIXELS_PER_METRE = 11  # of the road's raster; one pixel is a lane line
LINE_INTERVAL, DASH = 2, 1  # m between a line's points; points that a dash takes, and its gap
MESH_CELL = 0.08  # m, the cars' meshes are simplified to this
LEVEL_TERRAIN = 10**6  # pixels a terrain triangle may cover: the ground is flat
CAR_MODELS = ("vehicle.gltf", "right_tire_front.gltf", "right_tire_back.gltf")

SETTINGS = f"""
load-display {DISPLAY}
notify-level-device fatal
notify-level-display fatal
notify-level-gltf fatal
audio-library-name null
"""


class GraphicsError(ValueError):
    """This machine cannot render."""


def patch() -> None:
    """Prepare this process for MetaDrive; GraphicsError when there is no OpenGL."""
    extensions = ("GL_EXT_texture_filter_anisotropic", "GL_ARB_texture_filter_anisotropic")
    hidden = " ".join(f"-{name}" for name in extensions)
    os.environ.setdefault("MESA_EXTENSION_OVERRIDE", hidden)
    loadPrcFileData("drive", SETTINGS)
    _require_graphics()
    if engine_core.init is not _init:
        return
    engine: Any = engine_core
    terrain: Any = TerrainProperty
    terrain.get_semantic_map_pixel_per_meter = staticmethod(lambda: PIXELS_PER_METRE)
    engine.init = partial(_without_multisampling, _init)
    for owner, name, change in (
        (Terrain, "__init__", _byte_raster),
        (Terrain, "get_terrain_semantics", _byte_semantics),
        (Terrain, "_generate_mesh_vis_terrain", _coarse_mesh),
        (PSSM, "init", _without_shadows),
        (Loader, "loadModel", _decimated_model),
    ):
        setattr(owner, name, _around(getattr(owner, name), change))


_init = engine_core.init


def _require_graphics() -> None:
    pipe = GraphicsPipeSelection.getGlobalPtr().makeModulePipe(DISPLAY)
    if not isinstance(pipe, GraphicsPipe) or not pipe.isValid():
        raise GraphicsError(
            "no OpenGL on this machine (libEGL or a driver is missing): "
            "install libegl1, libgl1 and libgl1-mesa-dri, as cluster/setup.sh does"
        )


def _around(original: Any, change: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(original, self, *args, **kwargs)

    return method


def _without_multisampling(original: Any, **kwargs: Any) -> Any:
    return original(**{**kwargs, "msaa_samples": 0})


def _byte_raster(original: Any, terrain: Any, *args: Any, **kwargs: Any) -> None:
    """Keep the road's raster in bytes: a quarter of the memory."""
    original(terrain, *args, **kwargs)
    if not terrain.render:
        return
    side = terrain._semantic_map_size * terrain._semantic_map_pixel_per_meter
    terrain.semantic_tex = Texture()
    terrain.semantic_tex.setup2dTexture(side, side, Texture.TUnsignedByte, Texture.F_red)
    # The values are codes: interpolating between road and grass would paint yellow in between.
    terrain.semantic_tex.setMinfilter(SamplerState.FT_nearest)
    terrain.semantic_tex.setMagfilter(SamplerState.FT_nearest)


def _byte_semantics(original: Any, terrain: Any, center_point: Any) -> np.ndarray:
    """Draw the road's raster as MetaDrive does, in bytes from the start: 120 MB of floats less."""
    side = terrain._semantic_map_size * terrain._semantic_map_pixel_per_meter
    raster = np.zeros((side, side, 1), np.uint8)
    return draw_road(raster, terrain.engine.current_map, center_point)


def draw_road(raster: np.ndarray, road: Any, center: Any) -> np.ndarray:
    """Draw a MetaDrive map around `center` into uint8 (side, side, 1), each kind by its code."""
    features = road.get_map_features(interval=LINE_INTERVAL).values()
    for feature in features:
        if MetaDriveType.is_lane(feature["type"]):
            pixels = _pixels(feature["polygon"], center, len(raster))
            cv2.fillPoly(raster, [pixels], color=_code(feature["type"]))
    for feature in features:
        kind = feature["type"]
        if MetaDriveType.is_road_line(kind) or MetaDriveType.is_road_boundary_line(kind):
            line = _pixels(feature["polyline"], center, len(raster))
            thickness = 2 if MetaDriveType.is_yellow_line(kind) else 1
            dashes = [line]
            if MetaDriveType.is_broken_line(kind):
                starts = range(0, len(line) - DASH, 2 * DASH)
                dashes = [line[[start, start + DASH]] for start in starts]
            cv2.polylines(raster, dashes, False, _code(kind), thickness)
    return raster


def _pixels(points: Any, center: Any, side: int) -> np.ndarray:
    x, y = PIXELS_PER_METRE * (np.asarray(points, float)[:, :2] - center).T
    # MetaDrive rounds x towards the border and y towards the centre.
    return np.stack([(x + side / 2).astype(np.int32), y.astype(np.int32) + side // 2], axis=-1)


def _code(kind: Any) -> int:
    return round(255 * MapTerrainSemanticColor.get_color(kind))


def _coarse_mesh(original: Any, terrain: Any, *args: Any, **kwargs: Any) -> None:
    return original(terrain, *args, **{**kwargs, "target_triangle_width": LEVEL_TERRAIN})


def _without_shadows(original: Any, shadows: Any) -> None:
    original(shadows)
    shadows.use_pssm = False
    shadows.set_shader_inputs(shadows.engine.render)
    shadows.buffer.setActive(False)


_models: dict[str, NodePath] = {}


def _decimated_model(original: Any, loader: Any, path: Any, *args: Any, **kwargs: Any) -> NodePath:
    name = str(path)
    if not name.endswith(CAR_MODELS):
        return original(loader, path, *args, **kwargs)
    if name not in _models:
        model = NodePath(original(loader, path, *args, **kwargs).node().copySubgraph())
        model.flattenStrong()
        decimate(model, MESH_CELL)
        _models[name] = model
    return NodePath(_models[name].node().copySubgraph())
