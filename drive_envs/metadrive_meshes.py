"""Fewer triangles for a Panda3D model, by vertex clustering.

Vertices that fall into the same cell of a cubic grid become one of them; triangles that collapse,
and doubles, are dropped. Materials, normals and texture coordinates stay those of the kept vertex.
"""

import numpy as np
from jaxtyping import Float, Int
from panda3d.core import (
    Geom,
    GeomEnums,
    GeomPrimitive,
    GeomTriangles,
    GeomVertexReader,
    LMatrix4f,
    NodePath,
)

INDEX_TYPES = {
    GeomEnums.NT_uint8: np.uint8,
    GeomEnums.NT_uint16: np.uint16,
    GeomEnums.NT_uint32: np.uint32,
}


def decimate(model: NodePath, cell: float) -> None:
    """Simplify all meshes of a model in place on a grid of `cell` model units."""
    for path in model.findAllMatches("**/+GeomNode"):
        node = path.node()
        for index in range(node.getNumGeoms()):
            geom = node.modifyGeom(index)
            kept = cluster(positions(geom, path.getMat(model)), cell)
            for number in range(geom.getNumPrimitives()):
                triangles = kept[indices(geom.getPrimitive(number))]
                geom.setPrimitive(number, primitive(without_degenerate(triangles)))


def cluster(points: Float[np.ndarray, "points 3"], cell: float) -> Int[np.ndarray, " points"]:
    """Return for each point the index of the first one in its cell."""
    keys = np.floor(points / cell).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first[inverse.ravel()]


def without_degenerate(triangles: Int[np.ndarray, "triangles 3"]) -> Int[np.ndarray, "kept 3"]:
    """Drop triangles with a repeated corner, and all but one of those with the same corners."""
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(triangles, axis=1), axis=0, return_index=True)
    return triangles[np.sort(first)]


def positions(geom: Geom, matrix: LMatrix4f) -> Float[np.ndarray, "points 3"]:
    """Read the vertices of a mesh and move them by a Panda matrix (row vectors)."""
    reader = GeomVertexReader(geom.getVertexData(), "vertex")
    count = geom.getVertexData().getNumRows()
    points = np.array([tuple(reader.getData3()) for _ in range(count)]).reshape(-1, 3)
    rows = np.array([[matrix.getCell(i, j) for j in range(3)] for i in range(4)])
    return points @ rows[:3] + rows[3]


def indices(original: GeomPrimitive) -> Int[np.ndarray, "triangles 3"]:
    """Read the corners of the triangles."""
    triangles = original.decompose()
    if not triangles.isIndexed():
        first, count = triangles.getFirstVertex(), triangles.getNumVertices()
        return np.arange(first, first + count).reshape(-1, 3)
    data = triangles.getVertices().getHandle().getData()
    kind = INDEX_TYPES[triangles.getIndexType()]
    return np.frombuffer(data, kind).astype(np.int64).reshape(-1, 3)


def primitive(triangles: Int[np.ndarray, "triangles 3"]) -> GeomTriangles:
    """Pack the corners of triangles for Panda."""
    packed = GeomTriangles(GeomEnums.UH_static)
    packed.setIndexType(GeomEnums.NT_uint32)
    vertices = packed.modifyVertices()
    vertices.uncleanSetNumRows(triangles.size)
    vertices.modifyHandle().copyDataFrom(triangles.astype(np.uint32).tobytes())
    packed.setVertices(vertices)
    return packed
