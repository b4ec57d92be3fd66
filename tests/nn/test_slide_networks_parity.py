"""HisToGene, TRIPLEX and LongNet against forms in PyTorch, written from what was published."""

import jax
import numpy as np
import optional
import pytest
from slide_problems import NETWORKS, G, problem, random_params

torch = optional.torch()
pytestmark = pytest.mark.parity


def tensor(a):
    return torch.tensor(np.asarray(a, np.float64))


def linear(p):
    """nn.Linear of a Dense's parameters."""
    out = torch.nn.Linear(*p["kernel"].shape, bias="bias" in p, dtype=torch.float64)
    out.weight.data = tensor(p["kernel"].T)
    if "bias" in p:
        out.bias.data = tensor(p["bias"])
    return out


def norm(p, eps=1e-5):
    out = torch.nn.LayerNorm(len(p["scale"]), eps=eps, dtype=torch.float64)
    out.weight.data, out.bias.data = tensor(p["scale"]), tensor(p["bias"])
    return out


def attention(p, heads):
    """nn.MultiheadAttention whose queries, keys and values have no bias."""
    d = p["out"]["kernel"].shape[1]
    out = torch.nn.MultiheadAttention(d, heads, batch_first=True, dtype=torch.float64)
    kernel = np.concatenate([p["q"]["kernel"], p["kv"]["kernel"]], axis=1)
    out.in_proj_weight.data = tensor(kernel.T)
    out.in_proj_bias.data.zero_()
    out.out_proj.weight.data = tensor(p["out"]["kernel"].T)
    out.out_proj.bias.data = tensor(p["out"]["bias"])
    return out


def encoder_layer(p, heads):
    """nn.TransformerEncoderLayer, norm before, of a block's parameters."""
    d, hidden = p["feed_forward"]["widen"]["kernel"].shape
    out = torch.nn.TransformerEncoderLayer(
        d, heads, hidden, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    out.self_attn = attention(p["attention"], heads)
    out.linear1, out.linear2 = (linear(p["feed_forward"][k]) for k in ("widen", "narrow"))
    out.norm1, out.norm2 = norm(p["norm"]), norm(p["norm_2"])
    return out.eval()


def torch_histogene(p, given, network):
    h = linear(p["embed"])(tensor(given.x))
    for axis, name in enumerate(("embed_x", "embed_y")):
        table = torch.nn.Embedding.from_pretrained(tensor(p[name]))
        h = h + table(torch.tensor(given.place[:, axis]))
    for i in range(network.depth):
        h = encoder_layer(p[f"block_{i}"], network.heads)(h[None])[0]
    return {"fused": linear(p["head"])(norm(p["norm"])(h))}


def torch_triplex(p, given, network):
    x, n = tensor(given.x), len(given.x)
    around, present = torch.tensor(given.around, dtype=torch.long), torch.tensor(given.present)

    target = linear(p["embed_target"])(x)

    near = linear(p["embed_neighbours"])(x)[around] * present[..., None]
    own, heads = p["neighbours_encoder"], network.neighbours.heads
    cells = [(a, b) for a in range(5) for b in range(5)]
    for i in range(network.neighbours.depth):
        bias = torch.zeros(n, heads, 25, 25, dtype=torch.float64)
        for s, (a, b) in enumerate(cells):
            for t, (c, d) in enumerate(cells):
                bias[:, :, s, t] = tensor(own[f"bias_{i}"])[:, abs(a - c), abs(b - d)]
        bias.masked_fill_(~present[:, None, None, :], -torch.inf)
        layer = encoder_layer(own[f"block_{i}"], heads)
        near = layer(near, src_mask=bias.reshape(-1, 25, 25))
    near = norm(own["norm"])(near)

    own, whole = p["slide_encoder"], linear(p["embed_slide"])(x)
    place, d = given.place, network.width
    for i in range(network.slide.depth):
        if i == 1:
            grid = torch.zeros(d, *(place.max(axis=0) + 1)[::-1], dtype=torch.float64)
            grid[:, place[:, 1], place[:, 0]] = whole.T
            conv = torch.nn.Conv2d(d, d, 3, padding=1, groups=d, dtype=torch.float64)
            # Cells of a window go through x first, and x is the last axis of the grid.
            kernel = own["convolution"]["kernel"].reshape(3, 3, d)
            conv.weight.data = tensor(kernel.transpose(2, 1, 0)[:, None])
            conv.bias.data = tensor(own["convolution"]["bias"])
            seen = conv(grid[None])[0][:, place[:, 1], place[:, 0]].T
            whole = seen if network.published else whole + seen
        whole = encoder_layer(own[f"block_{i}"], network.slide.heads)(whole[None])[0]
    whole = norm(own["norm"])(whole)

    own, heads = p["fusion_encoder"], network.fusion.heads

    def read(seen, empty):
        h = whole[:, None]
        for i in range(network.fusion.depth):
            block = own[f"block_{i}"]
            same = norm(block["norm"])
            keys = same(seen)
            h = (
                h
                + attention(block["attention"], heads)(same(h), keys, keys, key_padding_mask=empty)[
                    0
                ]
            )
            widened = linear(block["feed_forward"]["widen"])(norm(block["norm_2"])(h))
            h = h + linear(block["feed_forward"]["narrow"])(torch.nn.functional.gelu(widened))
        return h[:, 0]

    fused = norm(own["norm"])(read(target[:, None], None) + read(near, ~present))
    weights = torch.ones_like(present) if network.published else present
    mean = (near * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    tokens = {"fused": fused, "target": target, "neighbours": mean, "slide": whole}
    return {name: linear(p[f"head_{name}"])(h) for name, h in tokens.items()}


def dilated(q, k, v, network):
    """Token by token, in plain words of the published rule; q, k, v [n, h, c]."""
    n, heads, c = q.shape
    outs, sums = [], []
    for segment, r in zip(network.segments, network.dilations, strict=True):
        segment = min(segment, n)
        out = torch.zeros(n, heads, c, dtype=torch.float64)
        total = torch.full((n, heads), -1e8, dtype=torch.float64)
        for start in range(0, n, segment):
            filled = -(-segment // r) * r  # what lies behind the tokens is zeros
            for head in range(heads):
                phase = head // -(-heads // r)
                at = [start + i for i in range(phase, filled, r)]
                there = [i for i in at if i < min(start + segment, n)]
                if not there:
                    continue
                scores = q[there, head] @ k[there, head].T / c**0.5
                unseen = len(at) - len(there) if network.published else 0
                scores = torch.cat([scores, torch.zeros(len(there), unseen)], dim=1)
                values = torch.cat([v[there, head], torch.zeros(unseen, c)])
                out[there, head] = torch.softmax(scores, dim=1) @ values
                total[there, head] = torch.logsumexp(scores, dim=1)
        outs.append(out)
        sums.append(total)
    weights = torch.softmax(torch.stack(sums), dim=0)
    return (weights[..., None] * torch.stack(outs)).sum(0)


def torch_longnet(p, given, network):
    n, d = len(given.x), network.width
    order = np.arange(n)
    if not network.published:
        order = np.array(sorted(order, key=lambda i: (given.place[i, 1], given.place[i, 0])))
    column, row = tensor(given.place[order]).T
    frequency = 10000.0 ** (-torch.arange(d // 4, dtype=torch.float64) / (d / 4))
    parts = [f(a[:, None] * frequency) for a in (row, column) for f in (torch.sin, torch.cos)]
    h = linear(p["embed"])(tensor(given.x[order])) + torch.cat(parts, dim=1)
    h = torch.cat([tensor(p["cls"]), h])
    for i in range(network.depth):
        own = p[f"layer_{i}"]
        q, k, v = linear(own["qkv"])(norm(own["norm"])(h)).chunk(3, dim=-1)
        q, k, v = (a.reshape(n + 1, network.heads, -1) for a in (q, k, v))
        mixed = dilated(q, k, v, network).reshape(n + 1, d)
        h = h + linear(own["out"])(norm(own["norm_mixed"])(mixed))
        widened = linear(own["feed_forward"]["widen"])(norm(own["norm_2"])(h))
        widened = norm(own["feed_forward"]["norm"])(torch.nn.functional.gelu(widened))
        h = h + linear(own["feed_forward"]["narrow"])(widened)
    tokens = torch.zeros(n, d, dtype=torch.float64)
    tokens[order] = norm(p["norm"], 1e-6)(norm(p["norm_layers"])(h))[1:]
    return {"fused": linear(p["head"])(tokens) + linear(p["skip"])(tensor(given.x))}


FORMS = {"histogene": torch_histogene, "triplex": torch_triplex, "longnet": torch_longnet}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("histogene", {}),
        ("triplex", {}),
        ("triplex", {"published": True}),
        ("longnet", {}),
        ("longnet", {"published": True}),
    ],
)
def test_agrees_with_torch(name, changes):
    network, given = NETWORKS[name].clone(**changes), problem()
    arguments = given.arguments(name)
    params = random_params(network, arguments)
    ours = jax.jit(network.apply)(params, *arguments)
    p = jax.tree.map(np.asarray, params)["params"]
    theirs = FORMS[name](p, given, network)  # without no_grad, where torch's fast path makes NaN
    found = ours._asdict() if name == "triplex" else {"fused": ours}
    assert found.keys() == theirs.keys()
    for key, a in found.items():
        assert a.shape == (50, G) and np.std(a) > 0.1
        np.testing.assert_allclose(
            a, theirs[key].detach().numpy(), atol=1e-5, rtol=1e-5, err_msg=key
        )
