"""The order in which weights are sent."""

import torch

from psyco_ray.learner.weight_sender import in_sending_order


def order(embedding_rows: int, emptied: bool = False) -> list[str]:
    embedding = torch.zeros(embedding_rows, 2)
    tensors = {"model.embed_tokens.weight": embedding}
    tensors |= {f"model.layers.{i}.{name}": torch.zeros(5, 2) for i in range(3) for name in ("q", "k")}
    tensors["model.norm"] = torch.zeros(2)
    if emptied:
        for tensor in tensors.values():
            tensor.ds_numel = tensor.numel()
            tensor.data = torch.zeros(0)
    sent = in_sending_order([(name, tensor, None) for name, tensor in tensors.items()], embedding)
    assert {name: tensor for name, tensor, _ in sent} == tensors
    names = [name for name, _, _ in sent if name != "model.embed_tokens.weight"]
    assert names == [name for name in tensors if name != "model.embed_tokens.weight"], "the others keep their order"
    return [name for name, _, _ in sent]


def test_the_embedding_follows_layers_that_are_as_large_and_parts_none() -> None:
    for emptied in (False, True):
        place = [order(rows, emptied).index("model.embed_tokens.weight") for rows in (1, 10, 11, 30, 100)]
        assert place == [2, 2, 4, 6, 7]
