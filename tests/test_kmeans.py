import torch

from chexstudy.vectors.kmeans import cluster_features


def test_more_rows_a_centroid_can_be_asked_for_than_faiss_takes_by_default():
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    exact = cluster_features(rows, 1, 5, 0, rows_per_cluster=3000)
    torch.testing.assert_close(exact, rows.mean(dim=0, keepdim=True), atol=1e-5, rtol=0)
