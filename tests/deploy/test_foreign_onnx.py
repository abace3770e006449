"""Small networks built node by node; what they give is computed by hand in numpy, from the pixels on."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from reidkit.bundle import MODEL, file_sha256, open_bundle
from reidkit.deploy.foreign_onnx import graph_input_size, import_onnx
from reidkit.errors import BundleError, ModelError, OutputError
from reidkit.types import InputSpec

HEIGHT, WIDTH, DIM = 12, 8, 6
SPEC = InputSpec(HEIGHT, WIDTH, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

_rng = np.random.default_rng(7)
KERNEL = _rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
HEAD = _rng.normal(size=(DIM, 5)).astype(np.float32)


def by_hand(crops: np.ndarray, spec: InputSpec = SPEC) -> np.ndarray:
    """Pixels to embeddings: pre-processing, a 3x3 convolution, ReLU, the mean over the picture, a linear map."""
    rows = []
    for crop in crops:
        planes = [
            crop[:, :, channel].astype(np.float64) for channel in ([0, 1, 2] if spec.color == "rgb" else [2, 1, 0])
        ]
        planes = [(p / spec.scale - m) / s for p, m, s in zip(planes, spec.mean, spec.std, strict=True)]
        maps = np.zeros((5, HEIGHT - 2, WIDTH - 2))
        for out in range(5):
            for channel in range(3):
                for i in range(3):
                    for j in range(3):
                        window = planes[channel][i : i + HEIGHT - 2, j : j + WIDTH - 2]
                        maps[out] += float(KERNEL[out, channel, i, j]) * window
        pooled = np.maximum(maps, 0).mean(axis=(1, 2))
        rows.append(HEAD.astype(np.float64) @ pooled)
    return np.array(rows)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, **attributes)


def constant(name, array, kind: type = np.float32):
    return numpy_helper.from_array(np.asarray(array, dtype=kind), name)


TRUNK = [
    node("Conv", ["images", "kernel"], ["maps"]),
    node("Relu", ["maps"], ["positive"]),
    node("GlobalAveragePool", ["positive"], ["pooled"]),
]
TAIL = [
    node("Flatten", ["pooled"], ["flat"]),
    node("Gemm", ["flat", "head"], ["features"], transB=1),
]
IMAGES = value("images", ["n", 3, HEIGHT, WIDTH])
FEATURES = value("features", ["n", DIM])
WEIGHTS = [constant("kernel", KERNEL), constant("head", HEAD)]


def model(nodes=(*TRUNK, *TAIL), inputs=(IMAGES,), outputs=(FEATURES,), weights=WEIGHTS, *, ir=8, opset=13):
    graph = helper.make_graph(list(nodes), "net", list(inputs), list(outputs), initializer=list(weights))
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


@pytest.fixture
def save(tmp_path):
    def write(network: onnx.ModelProto, name: str = "net.onnx") -> Path:
        file = tmp_path / name
        file.write_bytes(network.SerializeToString())
        return file

    return write


@pytest.fixture
def take_in(save, tmp_path):
    def run(network: onnx.ModelProto, spec: InputSpec = SPEC, **options):
        return import_onnx(save(network), tmp_path / "net.reid", spec=spec, **options)

    return run


def run_bundle(bundle, crops, *, infer_shapes=True):
    onnx.checker.check_model(str(bundle.model), full_check=infer_shapes)
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embeddings"], {"crops": crops})[0])


def some_crops(n=5):
    return np.random.default_rng(3).integers(0, 256, (n, HEIGHT, WIDTH, 3), dtype=np.uint8)


def signature(bundle):
    graph = onnx.load(bundle.model).graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    return [v.name for v in (*graph.input, *graph.output)], sizes


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(("scale", "mean"), [(255.0, (0.4, 0.5, 0.6)), (1.0, (104.0, 117.0, 123.0))])
def test_the_bundle_gives_what_numpy_gives_from_the_pixels_on(take_in, color, scale, mean):
    spec = InputSpec(HEIGHT, WIDTH, color=color, scale=scale, mean=mean, std=(0.2, 0.25, 0.3))
    bundle, crops = take_in(model(), spec).bundle, some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops, spec), rtol=2e-4, atol=1e-4 * 255 / scale)
    golden = bundle.golden()
    assert len(golden.crops) == 8
    np.testing.assert_allclose(golden.embeddings, by_hand(golden.crops, spec), rtol=2e-4, atol=1e-4 * 255 / scale)


def test_channels_come_first_before_anything_is_done_to_them(take_in):
    """Engines take many times as long for factors that change with every value."""
    spec = InputSpec(HEIGHT, WIDTH, color="bgr", mean=SPEC.mean, std=SPEC.std)
    nodes = onnx.load(take_in(model(), spec).bundle.model).graph.node
    assert [node.op_type for node in nodes[:5]] == ["Cast", "Transpose", "Gather", "Mul", "Sub"]


def test_rgb_and_bgr_are_not_the_same():
    # Else the test above would prove nothing.
    bgr = InputSpec(HEIGHT, WIDTH, color="bgr", mean=SPEC.mean, std=SPEC.std)
    assert np.abs(by_hand(some_crops()) - by_hand(some_crops(), bgr)).max() > 0.1


def test_the_manifest_says_what_is_known_and_no_more(take_in, save, tmp_path):
    result = take_in(model(), task="vehicle", licence="research-only")
    manifest = open_bundle(tmp_path / "net.reid").manifest
    assert manifest == result.bundle.manifest
    assert (manifest.name, manifest.task, manifest.licence) == ("net", "vehicle", "research-only")
    assert manifest.input == SPEC
    assert (manifest.embedding.dim, manifest.embedding.normalized) == (DIM, False)
    assert (manifest.batch, manifest.precision) == (None, "float32")
    assert manifest.architecture is None
    assert manifest.provenance.source == "net.onnx"
    assert manifest.provenance.source_sha256 == file_sha256(tmp_path / "net.onnx")
    assert manifest.provenance.framework == f"onnxruntime {onnxruntime.__version__}"
    assert manifest.provenance.dataset is None
    assert str(manifest.provenance.created).endswith("+00:00")
    assert result.notes == ()
    assert signature(result.bundle) == (["crops", "embeddings"], [["n", HEIGHT, WIDTH, 3], ["n", DIM]])


def test_the_same_file_gives_the_same_graph(save, tmp_path):
    file = save(model())
    graphs = [
        (import_onnx(file, tmp_path / name, spec=SPEC).bundle.path / MODEL).read_bytes()
        for name in ("a.reid", "b.reid")
    ]
    assert graphs[0] == graphs[1]


def test_progress_counts_up_to_its_total(take_in):
    seen = []
    take_in(model(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_nhwc(take_in):
    turn = node("Transpose", ["photos"], ["images"], perm=[0, 3, 1, 2])
    network = model([turn, *TRUNK, *TAIL], [value("photos", ["n", HEIGHT, WIDTH, 3])])
    crops = some_crops()
    np.testing.assert_allclose(run_bundle(take_in(network).bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_float16(take_in):
    weights = [constant("kernel", KERNEL, np.float16), constant("head", HEAD, np.float16)]
    inputs = [value("images", ["n", 3, HEIGHT, WIDTH], TensorProto.FLOAT16)]
    outputs = [value("features", ["n", DIM], TensorProto.FLOAT16)]
    bundle, crops = take_in(model(inputs=inputs, outputs=outputs, weights=weights)).bundle, some_crops()
    got = run_bundle(bundle, crops)
    assert got.dtype == np.float32
    assert bundle.manifest.precision == "float16"
    np.testing.assert_allclose(got, by_hand(crops), rtol=0.02, atol=0.02)


def test_float16_inside_and_float32_outside(take_in):
    nodes = [
        node("Cast", ["images"], ["halves"], to=TensorProto.FLOAT16),
        node("Conv", ["halves", "kernel"], ["maps"]),
        *TRUNK[1:],
        TAIL[0],
        node("Gemm", ["flat", "head"], ["half_features"], transB=1),
        node("Cast", ["half_features"], ["features"], to=TensorProto.FLOAT),
    ]
    weights = [constant("kernel", KERNEL, np.float16), constant("head", HEAD, np.float16)]
    bundle, crops = take_in(model(nodes, weights=weights)).bundle, some_crops()
    assert (bundle.manifest.batch, bundle.manifest.precision) == (None, "float16")
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_weights_of_eight_bits(take_in, kind):
    step = np.float32(np.abs(HEAD).max() / 127)
    zero = 0 if kind == np.int8 else 128
    codes = (np.round(HEAD / step) + zero).astype(kind)
    nodes = [*TRUNK, TAIL[0], node("DequantizeLinear", ["codes", "step", "zero"], ["head"]), TAIL[1]]
    weights = [WEIGHTS[0], constant("codes", codes, kind), constant("step", step), constant("zero", zero, kind)]
    bundle, crops = take_in(model(nodes, weights=weights)).bundle, some_crops()
    assert bundle.manifest.precision == "int8"
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=0.05, atol=0.05)


def test_bfloat16_weights(take_in):
    # A bfloat16 is the upper half of a float32.
    upper = (HEAD.view(np.uint32) >> 16).astype(np.uint16)
    halves = helper.make_tensor("halves", TensorProto.BFLOAT16, HEAD.shape, upper.tobytes(), raw=True)
    nodes = [*TRUNK, TAIL[0], node("Cast", ["halves"], ["head"], to=TensorProto.FLOAT), TAIL[1]]
    bundle, crops = take_in(model(nodes, weights=[WEIGHTS[0], halves])).bundle, some_crops()
    assert bundle.manifest.precision == "bfloat16"
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=0.05, atol=0.05)


def test_unit_length_is_detected(take_in):
    network = model(
        [*TRUNK, *TAIL, node("LpNormalization", ["features"], ["unit"], axis=1)], outputs=[value("unit", ["n", DIM])]
    )
    bundle = take_in(network).bundle
    assert bundle.manifest.embedding.normalized
    expected = by_hand(bundle.golden().crops)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(bundle.golden().embeddings, expected, rtol=1e-3, atol=1e-4)


def test_a_feature_map_of_one_pixel_is_flattened(take_in):
    network = model(TRUNK, outputs=[value("pooled", ["n", 5, 1, 1])], weights=WEIGHTS[:1])
    assert take_in(network).bundle.golden().embeddings.shape == (8, 5)


# Batch size


def reshaped(batch, sizes, *, in_node=False):
    """The network with its flattening traced at a fixed batch: `x.view(1, -1)`."""
    target = constant("sizes", sizes, np.int64)
    nodes = [*TRUNK, node("Reshape", ["pooled", "sizes"], ["flat"]), TAIL[1]]
    if in_node:
        nodes = [node("Constant", [], ["sizes"], value=target), *nodes]
    return model(
        nodes,
        [value("images", [batch, 3, HEIGHT, WIDTH])],
        [value("features", [batch, DIM])],
        [*WEIGHTS, *([] if in_node else [target])],
    )


@pytest.mark.parametrize("in_node", [False, True])
@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, -1]), (1, [1, 5]), (4, [4, -1]), (1, [-1, 5]), ("n", [1, -1])])
def test_a_fixed_batch_is_set_free(take_in, batch, sizes, in_node):
    result = take_in(reshaped(batch, sizes, in_node=in_node))
    assert result.bundle.manifest.batch is None
    crops = some_crops(7)
    np.testing.assert_allclose(run_bundle(result.bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)
    if batch == "n":
        assert result.notes == ()
    else:
        (note,) = result.notes
        assert note.startswith(
            f"The graph was made for batches of {batch}; now it takes any, as runs of 1, 2, 3, 5 crops"
        )


def test_one_constant_of_sizes_may_serve_a_weight_too(take_in):
    # (1, -1) of the pooled features must become free; the same constant reshapes a bias, which must not change.
    nodes = [
        *TRUNK,
        node("Reshape", ["pooled", "sizes"], ["flat"]),
        node("Reshape", ["bias", "sizes"], ["row"]),
        node("Gemm", ["flat", "head", "row"], ["features"], transB=1),
    ]
    weights = [*WEIGHTS, constant("sizes", [1, -1], np.int64), constant("bias", np.arange(DIM))]
    fixed = [value("images", [1, 3, HEIGHT, WIDTH])], [value("features", [1, DIM])]
    bundle, crops = take_in(model(nodes, *fixed, weights)).bundle, some_crops()
    assert bundle.manifest.batch is None
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops) + np.arange(DIM), rtol=2e-4, atol=1e-4)


def test_a_constant_joined_to_the_batch_keeps_it_fixed(take_in, capfd):
    nodes = [*TRUNK, TAIL[0], node("Concat", ["flat", "token"], ["features"], axis=1)]
    weights = [WEIGHTS[0], constant("token", [[1, 2, 3]])]
    network = model(nodes, [value("images", [1, 3, HEIGHT, WIDTH])], [value("features", [1, 8])], weights)
    result = take_in(network)
    assert result.bundle.manifest.batch == 1
    assert signature(result.bundle) == (["crops", "embeddings"], [[1, HEIGHT, WIDTH, 3], [1, 8]])
    (note,) = result.notes
    assert note.startswith("The graph takes batches of 1 only, and was left so. Made to take any, it fails: ")
    assert "on a batch of 2" in note
    assert "Concat" in note
    assert capfd.readouterr() == ("", "")  # onnxruntime would print what it could not do


def test_a_graph_that_runs_on_any_batch_but_mixes_crops_stays_fixed(take_in):
    # The mean over the batch is the crop itself when it is alone: nothing fails, only the numbers are wrong.
    mixing = [
        node("ReduceMean", ["features"], ["mean"], axes=[0], keepdims=1),
        node("Add", ["features", "mean"], ["mixed"]),
    ]
    result = take_in(model([*TRUNK, *TAIL, *mixing], outputs=[value("mixed", ["n", DIM])]))
    assert result.bundle.manifest.batch == 1
    assert "in a batch of 2, an embedding is " in result.notes[0]
    crop = some_crops(1)
    np.testing.assert_allclose(run_bundle(result.bundle, crop), 2 * by_hand(crop), rtol=2e-4, atol=1e-4)


def test_a_fixed_batch_of_several_that_cannot_be_freed_stays(take_in):
    nodes = [*TRUNK, TAIL[0], node("Concat", ["flat", "token"], ["features"], axis=1)]
    weights = [WEIGHTS[0], constant("token", np.ones((3, 2)))]
    result = take_in(model(nodes, [value("images", [3, 3, HEIGHT, WIDTH])], [value("features", [3, 7])], weights))
    assert result.bundle.manifest.batch == 3
    assert "batches of 3 only" in result.notes[0]
    assert "on a batch of 1" in result.notes[0]


def test_a_fixed_batch_whose_rows_depend_on_each_other_is_refused(take_in, tmp_path):
    nodes = [
        *TRUNK,
        TAIL[0],
        node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1),
        node("Concat", ["flat", "token"], ["longer"], axis=1),
        node("Concat", ["mean", "one"], ["mean_longer"], axis=1),
        node("Sub", ["longer", "mean_longer"], ["centred"]),
        node("Add", ["centred", "longer"], ["features"]),
    ]
    weights = [WEIGHTS[0], constant("token", np.ones((3, 2))), constant("one", np.zeros((1, 2)))]
    network = model(nodes, [value("images", [3, 3, HEIGHT, WIDTH])], [value("features", [3, 7])], weights)
    with pytest.raises(ModelError, match="does not give the same embeddings with its pre-processing inside") as caught:
        take_in(network)
    assert "in a batch of 3, an embedding is" in str(caught.value)
    assert "evaluation mode" in str(caught.value)
    assert not (tmp_path / "net.reid").exists()


# Sizes


def test_dynamic_height_and_width_become_the_size_that_is_asked(take_in, save):
    network = model(inputs=[value("images", ["n", 3, "h", "w"])])
    assert graph_input_size(save(network)) is None
    bundle, crops = take_in(network).bundle, some_crops()
    assert signature(bundle)[1][0] == ["n", HEIGHT, WIDTH, 3]
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_the_graphs_own_size(save):
    assert graph_input_size(save(model())) == (HEIGHT, WIDTH)
    nhwc = model(inputs=[value("images", ["n", 20, 10, 3])])
    assert graph_input_size(save(nhwc)) == (20, 10)
    assert graph_input_size(save(model(inputs=[value("images", [1, 3, 20, "w"])]))) is None


def test_another_size_than_the_graphs_is_refused(take_in):
    with pytest.raises(ModelError, match="takes crops of another size") as caught:
        take_in(model(), InputSpec(16, WIDTH))
    assert "got: 16x8 (height x width)\n  expected: 12x8\n  to do: ask for 12x8" in str(caught.value)
    with pytest.raises(ModelError, match="expected: anyx8"):
        take_in(model(inputs=[value("images", ["n", 3, "h", WIDTH])]), InputSpec(HEIGHT, 9))


def test_a_size_that_the_network_cannot_run_on_is_refused(take_in):
    nodes = [TRUNK[0], node("Flatten", ["maps"], ["flat"]), node("MatMul", ["flat", "wide"], ["features"])]
    wide = constant("wide", np.ones((5 * (HEIGHT - 2) * (WIDTH - 2), DIM)))
    network = model(nodes, [value("images", ["n", 3, "h", "w"])], weights=[WEIGHTS[0], wide])
    with pytest.raises(ModelError, match=r"cannot be run on a crop of 3 x 20 x 20 \(chw\)") as caught:
        take_in(network, InputSpec(20, 20))
    assert "MatMul" in str(caught.value)


# Names and old graphs


def test_names_that_the_bundle_needs_may_be_taken(take_in):
    network = model(
        [
            node("Conv", ["crops", "reidkit_factor"], ["reidkit_pixels"]),
            node("Relu", ["reidkit_pixels"], ["embeddings"]),
            node("GlobalAveragePool", ["embeddings"], ["crops_of_network"]),
            node("Flatten", ["crops_of_network"], ["flat"]),
            node("Gemm", ["flat", "head"], ["reidkit_flat"], transB=1),
        ],
        [value("crops", ["n", 3, HEIGHT, WIDTH])],
        [value("reidkit_flat", ["n", DIM])],
        [constant("reidkit_factor", KERNEL), constant("head", HEAD)],
    )
    bundle, crops = take_in(network).bundle, some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_an_output_called_embeddings(take_in):
    network = model(
        [*TRUNK, TAIL[0], node("Gemm", ["flat", "head"], ["embeddings"], transB=1)],
        outputs=[value("embeddings", ["n", DIM])],
    )
    bundle, crops = take_in(network).bundle, some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_a_branch_that_reads_and_names_values_of_the_outer_graph(take_in):
    def branch(name, operator):
        graph_output = value(f"embeddings_{name}" if name == "no" else "embeddings", None)
        return helper.make_graph([node(operator, ["crops"], [graph_output.name])], name, [], [graph_output])

    gate = helper.make_node(
        "If", ["yes"], ["features"], then_branch=branch("yes", "Identity"), else_branch=branch("no", "Neg")
    )
    nodes = [*TRUNK, TAIL[0], node("Gemm", ["flat", "head"], ["crops"], transB=1), gate]
    bundle = take_in(model(nodes, weights=[*WEIGHTS, constant("yes", True, np.bool_)])).bundle
    crops = some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


# Until opset 11 a Gemm had to have its third input.
OLD_NODES = [*TRUNK, TAIL[0], node("Gemm", ["flat", "head", "zeros"], ["features"], transB=1)]
OLD_WEIGHTS = [*WEIGHTS, constant("zeros", np.zeros(DIM))]


def test_a_graph_before_ir_4_lists_its_weights_as_inputs(take_in):
    inputs = [IMAGES, *(value(weight.name, list(weight.dims)) for weight in OLD_WEIGHTS)]
    network = model(OLD_NODES, inputs, weights=OLD_WEIGHTS, ir=3, opset=8)
    bundle, crops = take_in(network).bundle, some_crops()
    assert signature(bundle)[0] == ["crops", "embeddings"]
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_sparse_weights_come_along(take_in):
    filled = constant("head", HEAD.reshape(-1))
    places = constant("places", np.arange(HEAD.size), np.int64)
    network = model(weights=WEIGHTS[:1])
    network.graph.sparse_initializer.append(helper.make_sparse_tensor(filled, places, list(HEAD.shape)))
    bundle, crops = take_in(network).bundle, some_crops()
    # onnx's shape inference knows no sparse weights; onnxruntime does.
    np.testing.assert_allclose(run_bundle(bundle, crops, infer_shapes=False), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_functions_of_the_model_come_along(take_in):
    opset = [helper.make_opsetid("", 13)]
    twice = helper.make_function("mine", "Twice", ["x"], ["y"], [node("Add", ["x", "x"], ["y"])], opset)
    graph = helper.make_graph(
        [*TRUNK, *TAIL, node("Twice", ["features"], ["doubled"], domain="mine")],
        "net",
        [IMAGES],
        [value("doubled", ["n", DIM])],
        WEIGHTS,
    )
    network = helper.make_model(
        graph, ir_version=8, opset_imports=[*opset, helper.make_opsetid("mine", 1)], functions=[twice]
    )
    bundle, crops = take_in(network).bundle, some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), 2 * by_hand(crops), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
def test_opsets(take_in, opset):
    crops = some_crops(2)
    got = run_bundle(take_in(model(OLD_NODES, weights=OLD_WEIGHTS, opset=opset, ir=10)).bundle, crops)
    np.testing.assert_allclose(got, by_hand(crops), rtol=2e-4, atol=1e-4)


def test_an_opset_that_is_too_old_is_refused(take_in):
    with pytest.raises(
        ModelError, match=r"uses operators that are too old\n  got: opset 6\n  expected: opset 7 or newer"
    ):
        take_in(model(TRUNK, outputs=[value("pooled", ["n", 5, 1, 1])], weights=WEIGHTS[:1], opset=6))


# Outputs

TWO = [FEATURES, value("maps", ["n", 5, HEIGHT - 2, WIDTH - 2])]


def test_of_several_outputs_the_one_that_fits_is_taken_and_the_rest_falls_away(take_in):
    logits = node("MatMul", ["features", "classes"], ["logits"])
    weights = [
        *WEIGHTS,
        constant(
            "classes",
            np.ones(
                (
                    DIM,
                    4,
                )
            ),
        ),
    ]
    bundle = take_in(model([*TRUNK, *TAIL, logits], outputs=TWO, weights=weights)).bundle
    graph = onnx.load(bundle.model).graph
    assert "classes" not in {tensor.name for tensor in graph.initializer}
    assert "MatMul" not in {node.op_type for node in graph.node}
    crops = some_crops()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


def test_several_outputs_that_fit_need_a_name(take_in):
    network = model(outputs=[FEATURES, value("flat", ["n", 5])])
    with pytest.raises(ModelError, match="has several outputs that may be the embedding") as caught:
        take_in(network)
    assert "got: 'features' float32 (1, 6); 'flat' float32 (1, 5)" in str(caught.value)
    assert "--output features" in str(caught.value)
    assert take_in(network, output="flat").bundle.manifest.embedding.dim == 5


def test_an_output_that_is_not_there(take_in):
    with pytest.raises(ModelError, match=r"has no output 'feat'\n  expected: one of features, maps"):
        take_in(model(outputs=TWO), output="feat")


def test_a_feature_map_is_refused_even_when_asked_for(take_in):
    with pytest.raises(ModelError, match="gives no embedding") as caught:
        take_in(model(outputs=TWO), output="maps")
    assert "got: 'maps' float32 (1, 5, 10, 6)" in str(caught.value)
    assert "expected: floats of shape (1, dim) or (1, dim, 1, 1) for a batch of 1" in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "shape"), [([1, 5, 12], "(1, 5, 12)"), ([-1], "(60,)"), ([-1, 1], "(60, 1)"), ([60, 1], "(60, 1)")]
)
def test_outputs_of_another_shape_are_refused(take_in, sizes, shape):
    nodes = [
        TRUNK[0],
        node("Slice", ["maps", "zero", "two", "axis"], ["part"]),
        node("Reshape", ["part", "sizes"], ["boxes"]),
    ]
    numbers = {"zero": [0], "two": [2], "axis": [3], "sizes": sizes}
    weights = [WEIGHTS[0], *(constant(name, number, np.int64) for name, number in numbers.items())]
    sliced = model(
        nodes,
        [value("images", [1, 3, HEIGHT - 4, WIDTH])],
        [value("boxes", [None] * shape.count(" ") + [None])],
        weights,
    )
    with pytest.raises(ModelError) as caught:
        take_in(sliced, InputSpec(HEIGHT - 4, WIDTH))
    assert f"gives no embedding\n  got: 'boxes' float32 {shape}" in str(caught.value)


def test_an_output_of_whole_numbers_is_refused(take_in):
    network = model(
        [*TRUNK, *TAIL, node("Cast", ["features"], ["codes"], to=TensorProto.INT64)],
        outputs=[value("codes", ["n", DIM], TensorProto.INT64)],
    )
    with pytest.raises(ModelError, match=r"gives no embedding\n  got: 'codes' int64 \(1, 6\)"):
        take_in(network)


# Inputs


def test_several_inputs_are_refused(take_in):
    network = model(
        [*TRUNK, *TAIL, node("Identity", ["camera"], ["unused"])], [IMAGES, value("camera", [1], TensorProto.INT64)]
    )
    with pytest.raises(ModelError, match="takes more than an image") as caught:
        take_in(network)
    assert "got: 'images' float32 (n, 3, 12, 8); 'camera' int64 (1)" in str(caught.value)


def test_no_input_is_refused(take_in):
    network = model([node("Identity", ["head"], ["features"])], [], weights=WEIGHTS[1:])
    with pytest.raises(ModelError, match=r"takes no input\n  got: no input\n  expected: one input, float32 or float16"):
        take_in(network)


@pytest.mark.parametrize(
    ("shape", "kind", "got"),
    [
        (["n", 3, 12, 8], TensorProto.UINT8, "'images' uint8 (n, 3, 12, 8)"),
        (["n", 3, 12, 8], TensorProto.DOUBLE, "'images' float64 (n, 3, 12, 8)"),
        (["n", 96], TensorProto.FLOAT, "'images' float32 (n, 96)"),
    ],
)
def test_an_input_that_is_no_float_image_is_refused(take_in, shape, kind, got):
    network = model(
        [node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT), node("Flatten", ["floats"], ["features"])],
        [value("images", shape, kind)],
        [value("features", ["n", "dim"])],
        [],
    )
    with pytest.raises(ModelError, match="does not take float images") as caught:
        take_in(network)
    assert f"got: {got}\n" in str(caught.value)


def flattening(shape):
    return model(
        [node("Flatten", ["images"], ["features"])], [value("images", shape)], [value("features", ["n", "dim"])], []
    )


def test_an_input_of_unknown_rank_is_refused(save):
    with pytest.raises(ModelError, match="got: 'images' float32 of unknown shape"):
        graph_input_size(save(flattening(None)))


def test_another_number_of_channels_is_refused(take_in):
    with pytest.raises(ModelError, match="does not take images of three channels") as caught:
        take_in(flattening(["n", 1, HEIGHT, WIDTH]))
    assert "got: 'images' float32 (n, 1, 12, 8)\n  expected: 3 channels on axis 1 (nchw) or axis 3 (nhwc)" in str(
        caught.value
    )
    with pytest.raises(ModelError, match=r"expected: 3 channels on axis 3 \(nhwc\)"):
        take_in(flattening(["n", 3, HEIGHT, WIDTH]), layout="nhwc")


@pytest.mark.parametrize("shape", [["n", "c", "h", "w"], ["n", 3, 5, 3]])
def test_an_unclear_layout_must_be_said(take_in, shape):
    with pytest.raises(ModelError, match="does not say which axis of its input holds the channels") as caught:
        take_in(flattening(shape), InputSpec(5, 3))
    assert "--layout nchw or --layout nhwc" in str(caught.value)
    assert take_in(flattening(["n", 3, 5, 3]), InputSpec(5, 3), layout="nchw").bundle.manifest.embedding.dim == 45


def test_a_dynamic_channel_axis_is_found_where_it_can_only_be_one(take_in):
    assert take_in(flattening(["n", "c", HEIGHT, WIDTH])).bundle.manifest.embedding.dim == 3 * HEIGHT * WIDTH


# Numbers that cannot be right


def test_nan_weights_are_refused_and_named(take_in, tmp_path):
    broken = KERNEL.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="gives NaN or infinite embeddings") as caught:
        take_in(model(weights=[constant("kernel", broken), WEIGHTS[1]]))
    assert "got: on 8 of 8 golden crops" in str(caught.value)
    assert "its weights hold NaN or infinite values (kernel)" in str(caught.value)
    assert not (tmp_path / "net.reid").exists()


def test_an_overflow_points_at_the_preprocessing(take_in):
    network = model(
        [*TRUNK, TAIL[0], node("Exp", ["flat"], ["features"])],
        weights=WEIGHTS[:1],
        outputs=[value("features", ["n", 5])],
    )
    with pytest.raises(ModelError, match="to do: check scale, mean and std"):
        take_in(network, InputSpec(HEIGHT, WIDTH, scale=1e-3))


def test_embeddings_that_are_all_alike_get_a_note(take_in):
    result = take_in(
        model(
            [*TRUNK, *TAIL[:1], node("Gemm", ["flat", "head", "bias"], ["features"], transB=1)],
            weights=[*WEIGHTS, constant("bias", np.full(DIM, 1e4))],
        )
    )
    (note,) = result.notes
    assert "nearly the same embedding (cosine 0.9999" in note or "nearly the same embedding (cosine 1.0" in note
    assert "is the pre-processing right?" in note


def test_embeddings_of_length_zero_get_a_note(take_in):
    (note,) = take_in(model(weights=[WEIGHTS[0], constant("head", np.zeros((DIM, 5)))])).notes
    assert note.startswith("8 of 8 golden crops have an embedding of length zero")


IMAGENET, IMAGENET_255 = ((0.485,) * 3, (0.229,) * 3), ((123.675,) * 3, (58.395,) * 3)


@pytest.mark.parametrize(
    ("scale", "mean", "std", "note"),
    [
        # (0 - 123.675) / 58.395, (1 - 123.675) / 58.395, (255 - 123.675) / 58.395
        (255.0, *IMAGENET_255, "as -2.118 to -2.101, where .* Should it be --scale 1. That would give -2.118 to 2.249"),
        # -0.485 / 0.229, (255 - 0.485) / 0.229, (1 - 0.485) / 0.229
        (1.0, *IMAGENET, "as -2.118 to 1111, where .* Should it be --scale 255. That would give -2.118 to 2.249"),
        (1.0, (0.5,) * 3, (0.5,) * 3, "as -1 to 509, where .* Should it be --scale 255. That would give -1 to 1"),
        (255.0, (104.0, 117.0, 123.0), (1.0,) * 3, "as -104 to -103, where .* --scale 1. That would give -104 to 151"),
        (255.0, (0.0,) * 3, (0.5, 0.5, 20.0), "as 0 to 0.05, where .* are scale, mean and std right.$"),
        (255.0, (1000.0,) * 3, (1.0,) * 3, "as -1000 to -999, where .* usual: are scale, mean and std right.$"),
        (255.0, *IMAGENET, None),
        (1.0, *IMAGENET_255, None),
        (1.0, (104.0, 117.0, 123.0), (1.0,) * 3, None),  # centred pixels
        (1.0, (0.0,) * 3, (1.0,) * 3, None),  # bare pixels
        (255.0, (0.0,) * 3, (1.0,) * 3, None),
        (127.5, (1.0,) * 3, (1.0,) * 3, None),
    ],
)
def test_a_scale_that_does_not_go_with_mean_and_std_gets_a_note(take_in, scale, mean, std, note):
    spec = InputSpec(HEIGHT, WIDTH, scale=scale, mean=mean, std=std)
    found = [text for text in take_in(model(), spec).notes if "enter the network" in text]
    if note is None:
        assert found == []
    else:
        (text,) = found
        assert text.startswith(f"With scale {scale:g}, pixels from 0 to 255 enter the network as ")
        assert re.search(note, text), text


# Files


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(
        ModelError, match=r"gone.onnx does not exist\n  expected: an ONNX file\n  to do: check the path"
    ):
        import_onnx(tmp_path / "gone.onnx", tmp_path / "net.reid", spec=SPEC)
    with pytest.raises(ModelError, match="is a folder"):
        graph_input_size(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"not a model at all", "is not an ONNX file, or is truncated"),
        (b"\x08\x08", "is not an ONNX file, or is truncated\n  got: 2 bytes: no graph inside"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is not an ONNX file\n  got: a Git LFS pointer",
        ),
        (
            b"PK\x03\x04\x00\x00archive/data.pkl",
            "is not an ONNX file\n  got: a zip archive, as PyTorch checkpoints are",
        ),
        (b"\n<!DOCTYPE html><html>", "is not an ONNX file\n  got: a web page or XML"),
    ],
)
def test_a_file_that_is_not_onnx(tmp_path, data, message):
    file = tmp_path / "net.onnx"
    file.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        import_onnx(file, tmp_path / "net.reid", spec=SPEC)
    assert f"{file} {message}" in str(caught.value)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_file(save, tmp_path, keep):
    file = save(model())
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError, match="is not an ONNX file, or is truncated"):
        import_onnx(file, tmp_path / "net.reid", spec=SPEC)


def test_an_invalid_graph(take_in):
    with pytest.raises(ModelError, match="is not a valid ONNX graph") as caught:
        take_in(model([*TRUNK, node("Flatten", ["nothing"], ["features"])]))
    assert "nothing" in str(caught.value)


def test_an_operator_that_onnxruntime_does_not_have(take_in):
    graph = helper.make_graph(
        [*TRUNK, node("Magic", ["pooled"], ["features"], domain="mine")], "net", [IMAGES], [FEATURES], WEIGHTS[:1]
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("mine", 1)]
    with pytest.raises(ModelError, match=r"onnxruntime [0-9.]+ cannot open .*net.onnx") as caught:
        take_in(helper.make_model(graph, ir_version=8, opset_imports=opsets))
    assert "Magic" in str(caught.value)


def external(tmp_path, location):
    network = model()
    convert_model_to_external_data(network, location="net.data", size_threshold=0)
    onnx.save(network, tmp_path / "net.onnx")
    if location != "net.data":
        for tensor in (network := onnx.load(tmp_path / "net.onnx", load_external_data=False)).graph.initializer:
            tensor.external_data[0].value = location
        (tmp_path / "net.onnx").write_bytes(network.SerializeToString())
    return tmp_path / "net.onnx"


def test_weights_in_a_file_beside_the_graph_move_into_the_bundle(tmp_path):
    file = external(tmp_path, "net.data")
    assert graph_input_size(file) == (HEIGHT, WIDTH)
    bundle, crops = import_onnx(file, tmp_path / "net.reid", spec=SPEC).bundle, some_crops()
    (tmp_path / "net.data").unlink()
    np.testing.assert_allclose(run_bundle(bundle, crops), by_hand(crops), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("location", ["../net.data", "missing.data"])
def test_weights_that_are_missing_or_outside_the_folder(tmp_path, location):
    (tmp_path / "inner").mkdir()
    file = external(tmp_path / "inner", location)
    (tmp_path / "net.data").write_bytes((tmp_path / "inner" / "net.data").read_bytes())
    with pytest.raises(ModelError, match=r"The weights that .*net\.onnx keeps in other files cannot be read") as caught:
        import_onnx(file, tmp_path / "net.reid", spec=SPEC)
    assert "put the .onnx and its data files, unchanged, in one folder" in str(caught.value)


def test_a_bundle_that_is_there_stays_unless_told(take_in, tmp_path):
    take_in(model())
    before = (tmp_path / "net.reid" / MODEL).read_bytes()
    doubled = model(weights=[WEIGHTS[0], constant("head", 2 * HEAD)])
    with pytest.raises(OutputError, match=r"net.reid already exists\n  to do: choose another name, or say --overwrite"):
        take_in(doubled)
    assert (tmp_path / "net.reid" / MODEL).read_bytes() == before
    crops = some_crops()
    np.testing.assert_allclose(
        run_bundle(take_in(doubled, overwrite=True).bundle, crops), 2 * by_hand(crops), rtol=2e-4, atol=1e-4
    )


def test_a_bad_place_is_refused_before_the_file_is_looked_at(tmp_path):
    gone = tmp_path / "gone.onnx"
    with pytest.raises(BundleError, match=r"A bundle's name must end in \.reid\n  got: .*\n  to do: call it net\.reid"):
        import_onnx(gone, tmp_path / "net", spec=SPEC)
    mine = tmp_path / "mine.reid"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(OutputError, match=r"mine\.reid already exists"):
        import_onnx(gone, mine, spec=SPEC)
    with pytest.raises(OutputError, match=r"nothing was removed\n  got: a folder with photo\.jpg"):
        import_onnx(gone, mine, spec=SPEC, overwrite=True)
    assert [file.name for file in mine.iterdir()] == ["photo.jpg"]
