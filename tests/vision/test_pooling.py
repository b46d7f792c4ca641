"""Grids to fewer tokens, and their boxes."""

import pytest
import torch

from vision import VisionError, grid_boxes, pool_grid


def slowly_pooled(features: torch.Tensor, grid: tuple[int, int], to: tuple[int, int], kind: str) -> torch.Tensor:
    """Each token of the result is over those from floor(i * n / m) to ceil((i + 1) * n / m), in both directions."""
    picture = features.reshape(features.shape[0], *grid, -1)
    cells = []
    for row in range(to[0]):
        for column in range(to[1]):
            rows = slice(row * grid[0] // to[0], -(-(row + 1) * grid[0] // to[0]))
            columns = slice(column * grid[1] // to[1], -(-(column + 1) * grid[1] // to[1]))
            cell = picture[:, rows, columns].flatten(1, 2)
            cells.append(cell.amax(1) if kind == "max" else cell.mean(1))
    return torch.stack(cells, dim=1)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("grid", "to"), [((7, 7), (6, 6)), ((16, 16), (6, 6)), ((5, 9), (2, 4)), ((3, 3), (6, 6))])
def test_pooling_is_adaptive(grid: tuple[int, int], to: tuple[int, int], kind: str) -> None:
    features = torch.randn(2, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(0))
    found = pool_grid(features, grid, to, kind=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found, slowly_pooled(features, grid, to, kind))
    assert found.is_contiguous()


def test_the_paper_s_grid_is_36_tokens_of_maxima() -> None:
    features = torch.randn(1, 49, 3)
    assert torch.equal(pool_grid(features, (7, 7)), slowly_pooled(features, (7, 7), (6, 6), "max"))


def test_a_grid_of_the_size_stays() -> None:
    features = torch.randn(1, 36, 3)
    assert pool_grid(features, (6, 6)) is features


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(VisionError, match="no grid of 7 x 7"):
        pool_grid(torch.zeros(1, 50, 3), (7, 7))
    with pytest.raises(VisionError, match="at least 1 x 1"):
        pool_grid(torch.zeros(1, 49, 3), (7, 7), (0, 6))


def test_boxes_are_zero_as_the_authors_or_the_tokens_places() -> None:
    assert torch.equal(grid_boxes(2), torch.zeros(2, 36, 4))
    cells = grid_boxes(2, (2, 4), kind="cells")
    assert cells.shape == (2, 8, 4)
    assert cells[1, 0].tolist() == [0, 0, 0.25, 0.5]
    assert cells[1, 5].tolist() == [0.25, 0.5, 0.5, 1]
    assert cells[0, 7].tolist() == [0.75, 0.5, 1, 1]
