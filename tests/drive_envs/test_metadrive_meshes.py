import numpy as np

from drive_envs.metadrive_meshes import cluster, without_degenerate


def test_points_of_one_cell_become_the_first_of_them():
    points = np.array([[0.01, 0.0, 0.0], [0.32, 0.0, 0.0], [0.05, 0.09, 0.0], [0.34, 0.01, 0.0]])
    np.testing.assert_array_equal(cluster(points, 0.1), [0, 1, 0, 1])


def test_collapsed_and_double_triangles_are_dropped():
    triangles = np.array([[0, 1, 2], [0, 0, 2], [2, 1, 0], [3, 1, 2]])
    np.testing.assert_array_equal(without_degenerate(triangles), [[0, 1, 2], [3, 1, 2]])
