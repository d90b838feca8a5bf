"""A camera in MetaDrive with our intrinsics: colour and metric depth from one pass.

The principal point lies off the image's centre, so the lens's film is shifted by the difference.
The scene is drawn `supersampling` times larger in each direction: colours are averaged by the
texture unit, depth as the nearest surface's inverse (1/z is linear on the image of a plane).
"""

from typing import Any

import numpy as np
from direct.filter.FilterManager import FilterManager
from jaxtyping import Float, UInt8
from metadrive.component.sensors.base_camera import BaseCamera
from metadrive.constants import CameraTagStateKey, CamMask, Semantics
from metadrive.engine.core.terrain import Terrain
from metadrive.third_party.simplepbr import _load_shader_str
from panda3d.core import FrameBufferProperties, GraphicsOutput, SamplerState, Shader, Texture

from drive_envs.camera import Camera
from drive_envs.frames import shrink_depth

NEAR, FAR = 0.25, 50_000.0  # m; the sky is a box 10 km away
SKY = 1_500.0  # m; farther than any ground MetaDrive has


class SupersampledFilter(FilterManager):
    """Draws the scene larger than the buffer that it ends up in."""

    def __init__(self, window: Any, camera: Any, factor: int) -> None:
        self._factor = factor
        super().__init__(window, camera)

    def getScaledSize(self, mul: int, div: int, align: int) -> tuple[int, int]:
        """Override the size that Panda chooses for the scene's buffer."""
        width, height = super().getScaledSize(mul, div, align)
        return width * self._factor, height * self._factor


class MetaDriveCamera(BaseCamera):
    """One of our cameras as a MetaDrive sensor; `pose` it in the world, render, then read it."""

    CAM_MASK = CamMask.RgbCam
    num_channels = 3

    def __init__(self, camera: Camera, supersampling: int, engine: Any, *, cuda: bool) -> None:
        assert not cuda
        self.camera, self._supersampling = camera, supersampling
        self.BUFFER_W, self.BUFFER_H = camera.width, camera.height
        super().__init__(engine, False)
        self.lens.setFilmSize(camera.width, camera.height)
        self.lens.setFocalLength(camera.focal)
        self.lens.setFilmOffset(
            camera.width / 2 - camera.center_u, camera.center_v - camera.height / 2
        )
        self.lens.setNearFar(NEAR, FAR)

    def mount(self, camera: Camera) -> None:
        """Become another camera of the same size and centre; `pose` and render show it."""
        self.camera = camera
        self.lens.setFocalLength(camera.focal)

    def pose(self, x: float, y: float, yaw: float) -> None:
        """Put the camera where it is on a car at a world pose (m, m, rad)."""
        engine: Any = self.engine
        self.cam.reparentTo(engine.render)
        self.cam.setPos(x, y, self.camera.mount_height)
        # Panda's cameras look along +y at heading 0.
        self.cam.setHpr(float(np.degrees(yaw)) - 90.0, -float(np.degrees(self.camera.pitch)), 0.0)

    def image(self) -> UInt8[np.ndarray, "3 height width"]:
        """Return the last rendered colours, RGB."""
        bgr = np.frombuffer(self.color_texture.getRamImage(), np.uint8)
        bgr = bgr.reshape(self.BUFFER_H, self.BUFFER_W, -1)[::-1, :, 2::-1]
        return np.ascontiguousarray(bgr.transpose(2, 0, 1))

    def depth(self) -> Float[np.ndarray, "height width"]:
        """Return the last rendered planar depth in metres, float32; inf in the sky."""
        k = self._supersampling
        z = np.frombuffer(self.depth_texture.getRamImage(), np.float32)
        z = z.reshape(self.BUFFER_H * k, self.BUFFER_W * k)[::-1]
        depth = shrink_depth(NEAR * FAR / (FAR - z * (FAR - NEAR)), k)
        return np.where(depth > SKY, np.float32(np.inf), depth)

    def get_rgb_array_cpu(self) -> np.ndarray:
        """Return (H, W, 3) BGR, as MetaDrive's observations expect it."""
        return self.image()[::-1].transpose(1, 2, 0)

    def _create_buffer(self, width: int, height: int, frame_buffer_property: Any) -> None:
        properties = FrameBufferProperties()
        properties.set_rgba_bits(8, 8, 8, 0)
        engine: Any = self.engine
        self.buffer = engine.win.makeTextureBuffer("camera", width, height, fbp=properties)
        self.color_texture = Texture("color")
        mode = GraphicsOutput.RTM_copy_ram
        self.buffer.addRenderTexture(self.color_texture, mode, GraphicsOutput.RTP_color)

    def _setup_effect(self) -> None:
        """Draw scene and depth into textures, and from there tone-mapped into the buffer."""
        camera = self.cam.node()
        camera.setTagStateKey(CameraTagStateKey.RGB)
        terrain = Terrain.make_render_state(self.engine, "terrain.vert.glsl", "terrain.frag.glsl")
        camera.setTagState(Semantics.TERRAIN.label, terrain)
        self.manager = SupersampledFilter(self.buffer, self.cam, self._supersampling)
        properties = FrameBufferProperties()
        properties.set_float_color(True)
        properties.set_rgba_bits(16, 16, 16, 16)
        properties.set_depth_bits(32)
        properties.set_float_depth(True)
        properties.set_multisamples(0)
        scene = Texture("scene")
        scene.set_format(Texture.F_rgba16)
        scene.set_component_type(Texture.T_float)
        scene.set_minfilter(SamplerState.FT_linear)
        scene.set_magfilter(SamplerState.FT_linear)
        quad: Any = self.manager.renderSceneInto(colortex=scene, fbprops=properties)
        self.depth_texture = Texture("depth")
        self.depth_texture.setFormat(Texture.F_depth_component32)
        self.depth_texture.setComponentType(Texture.T_float)
        self.manager.buffers[-1].addRenderTexture(
            self.depth_texture, GraphicsOutput.RTM_copy_ram, GraphicsOutput.RTP_depth
        )
        vertex, fragment = (_load_shader_str(name, {}) for name in ("post.vert", "tonemap.frag"))
        quad.set_shader(Shader.make(Shader.SL_GLSL, vertex=vertex, fragment=fragment))
        quad.set_shader_input("tex", scene)
        quad.set_shader_input("exposure", 1.0)
