"""Checkpoints of the real zoobot 2.9.0 (made by tools/zoobot_checkpoints.py) predict what zoobot says they do; what is
no such checkpoint is refused, and nothing in it runs"""
import importlib.util, json, os, pickle, subprocess, sys, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, yaml
from zoofast.core.errors import BundleError
from zoofast.bundles.bundle import load_bundle
from zoofast.bundles.card import model_card
from zoofast.images.reader import ImageReader
from zoofast.tasks.schema import Schema
from zoofast.bundles.zoobot import from_zoobot_checkpoint, read_checkpoint, zoobot_reader

HERE = Path(__file__).resolve().parent
FIX = HERE/"fixtures"/"zoobot"
ABOUT = json.loads((FIX/"about.json").read_text())
MODELS,VIEWS,SIZE = sorted(ABOUT["models"]),("minimal", "fast"),64
FILES = sorted((FIX/"images").glob("*.jpg"))
each = pytest.mark.parametrize("name", MODELS)

def load(name, at=FIX, **kw):
    "The model of a checkpoint, told only what the checkpoint does not say"
    about = ABOUT["models"][name]
    if not about["encoder"].startswith("hf_hub:"):
        kw = dict(encoder=about["encoder"], timm_kwargs=about["timm_kwargs"]) | kw
    return from_zoobot_checkpoint(at/f"{name}.ckpt", **(dict(classes=about["classes"], size=SIZE, device="cpu") | kw))

def zoobots(name, view, at=FIX):
    "zoobot's own predictions `(galaxies, outputs)`"
    df = pd.read_csv(at/f"{name}_{view}.csv", dtype={"id_str": str})
    assert df.id_str.tolist()==[f.stem for f in FILES]
    return df.drop(columns="id_str")

def pixels(name, view, at=FIX):
    "zoobot's own pixels for a model"
    return torch.from_numpy(np.load(at/"pixels.npz")[view+"_grey"*ABOUT["models"][name]["grey"]])

def columns(model):
    "Columns of zoofast's predictions that hold what zoobot predicts"
    t = model.task
    if t.kind=="classification": return [f"{t.label}_{c}" for c in t.classes]
    return t.labels if t.kind=="regression" else [f"{c}_concentration" for c in t.schema.columns]

def close(a, b):
    a,b = np.asarray(a, dtype=float),np.asarray(b, dtype=float)
    assert a.shape==b.shape and np.abs(b).max()>0
    assert np.allclose(a, b, rtol=1e-5, atol=1e-5*min(1, np.abs(b).max())), f"off by {np.abs(a-b).max():.2g}"

# The same as zoobot

@pytest.mark.parametrize("view", VIEWS)
@each
def test_same_pixels_same_predictions(name, view):
    "zoobot's pixels in, zoobot's predictions out"
    want = zoobots(name, view).to_numpy()
    # galaxies differ, so equality says something
    assert (want.std(0)>1e-4*np.abs(want).mean(0)).all() or want.std(0).max()>1e-3
    close(load(name).samples(pixels(name, view))[0], want)

@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("grey", [False, True])
def test_the_reader_gives_zoobots_pixels(view, grey):
    "From files of the model's size, larger ones, and ones that are neither square nor even: to the byte"
    reader = zoobot_reader(SIZE, 1 if grey else 3, view)
    want = np.load(FIX/"pixels.npz")[view+"_grey"*grey]
    assert {f.stem.split("-")[0] for f in FILES}=={"even", "large", "odd"}
    np.testing.assert_array_equal(np.stack([reader(f).numpy() for f in FILES]), want)

@pytest.mark.slow
def test_files_through_bundles(tmp_path):
    "Saved as bundles, loaded in a process that has neither zoobot nor a network, predicted from files"
    saved = lambda name, view: load(name, view=view, folder=tmp_path/f"{name}_{view}")
    models = {f"{name}_{view}": saved(name, view) for name in MODELS for view in VIEWS}
    code = ("import socket, sys\n"
            "from pathlib import Path\n"
            "def no(*a, **k): raise OSError('no network')\n"
            "socket.getaddrinfo = socket.create_connection = no\n"
            "from zoofast.predict.table import predict_catalog\n"
            "for b in sys.argv[2:]: predict_catalog(b, sys.argv[1], out=b+'.csv', device='cpu', progress=False)\n"
            "assert not {'zoobot', 'lightning', 'galaxy_datasets'} & set(sys.modules)\n")
    catalog = tmp_path/"catalog.csv"
    pd.DataFrame(dict(id_str=[f.stem for f in FILES], file_loc=[str(f) for f in FILES])).to_csv(catalog, index=False)
    command = [sys.executable, "-W", "ignore", "-c", code, catalog, *(str(tmp_path/k) for k in models)]
    subprocess.run(command, check=True, cwd=HERE.parent)
    for k,model in models.items():
        preds = pd.read_csv(tmp_path/f"{k}.csv", dtype={"id_str": str})
        assert preds.error.isna().all() and preds.id_str.tolist()==[f.stem for f in FILES]
        close(preds[columns(model)], zoobots(*k.rsplit("_", 1)))

@each
def test_what_the_checkpoint_says_is_kept(name, tmp_path):
    model = load(name, folder=tmp_path/"b")
    again = load_bundle(tmp_path/"b", device="cpu")
    assert again.task.config==model.task.config and again.reader==model.reader
    config = json.loads((tmp_path/"b"/"config.json").read_text())
    dropout = 0.2 if name=="classifier5_grey" else 0.5
    assert config["zoobot"]["checkpoint"]==f"{name}.ckpt"
    assert config["params"]["head_dropout_prob"]==again.net.head[0].p==dropout
    card = (tmp_path/"b"/"README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"]=="zoofast" and model.task.kind in front["tags"]
    assert ("pipeline_tag" in front)==(model.task.kind=="classification")
    assert f"zoobot checkpoint {name}.ckpt" in card and "## How to use it" in card and card==model_card(config, "b")
    enc = again.net.encoder
    assert enc.channels==(1 if "grey" in name else 3) and not enc.mean.any() and (enc.std==1).all()

def test_tasks():
    config = load("classifier2").task.config
    assert config|{"label": "ring", "classes": ["other", "ring"]}==config
    assert load("classifier2", classes=None).task.classes==[0, 1]
    assert load("classifier2", label="bar").task.columns==["bar_pred", "bar_other", "bar_ring"]
    t = load("regressor").task
    assert (t.labels, t.loss, t.unit_interval, t.mean, t.std)==(["magnitude"], "mae", False, [0.], [1.])
    t = load("regressor_unit").task
    assert (t.labels, t.loss, t.unit_interval)==(["ellipticity"], "mse", True)
    assert load("tree").task.schema==Schema.from_name("decals_dr5_ortho")
    s = load("tree_own").task.schema
    assert s.name=="own" and s.asked_after["disk-edge-on-dr5"]==["smooth-or-featured-dr5_featured-or-disk"]

def test_one_galaxy():
    "zoobot's regressor cannot predict a last batch of one"
    model = load("regressor")
    close(model.predict(FILES[:1], progress=False).magnitude, zoobots("regressor", "minimal").magnitude[:1])

def test_more_training_starts_from_the_head(tmp_path):
    pytest.importorskip("fastai")
    from zoofast.data.loaders import GalaxyDataLoaders
    model = load("classifier2")
    files = [str(f) for f in FILES]
    df = pd.DataFrame(dict(id_str=[str(i) for i in range(12)], file_loc=files, ring=["ring", "other"]*6))
    dls = GalaxyDataLoaders.from_catalog(df, task=model.task, reader=model.reader, augment=None, batch_size=4,
                                         valid=0.34, progress=False, device="cpu")
    learn = model.to_learner(dls)
    assert torch.equal(learn.model.head[1].weight, model.net.head[1].weight)

# Arguments

def changed(tmp_path, name="classifier2", weights=lambda k, v: (k, v), **top):
    """A checkpoint with changes, in a file of its own; `weights` maps a name and a tensor, or gives `None` to leave it
    out"""
    path = FIX/f"{name}.ckpt"
    c = read_checkpoint(path) if "tree" in name else torch.load(path, weights_only=True)
    c = {k: c[k] for k in ("epoch", "state_dict", "hyper_parameters")}
    tensors = c["state_dict"]|{"head.extra": torch.zeros(1)}
    c["state_dict"] = dict(o for k,v in tensors.items() if (o := weights(k, v)))
    if "tree" in name: c["hyper_parameters"].pop("schema")
    torch.save({**c, **top}, tmp_path/"changed.ckpt")
    return tmp_path/"changed.ckpt"

KW = dict(size=SIZE, device="cpu")
NANO = ABOUT["models"]["classifier2"]["timm_kwargs"]

def test_without_hyperparameters(tmp_path):
    path = changed(tmp_path, hyper_parameters={})
    with pytest.raises(BundleError, match="changed.ckpt.*give encoder="): from_zoobot_checkpoint(path, **KW)
    model = from_zoobot_checkpoint(path, encoder="convnext_nano", timm_kwargs=NANO, label="ring", **KW)
    close(model.predict(FILES, progress=False)[["ring_0", "ring_1"]], zoobots("classifier2", "minimal"))

def test_number_without_hyperparameters_needs_a_task(tmp_path):
    from zoofast.tasks.regression import Regression
    path = changed(tmp_path, "regressor", hyper_parameters={})
    kw = dict(encoder="resnet18", timm_kwargs=ABOUT["models"]["regressor"]["timm_kwargs"], **KW)
    with pytest.raises(BundleError, match="give task="): from_zoobot_checkpoint(path, **kw)
    model = from_zoobot_checkpoint(path, task=Regression(["m"], mean=[0], std=[1]), **kw)
    close(model.predict(FILES, progress=False).m, zoobots("regressor", "minimal").magnitude)

def test_tree_without_a_schema_needs_one(tmp_path):
    path = changed(tmp_path, "tree")
    with pytest.raises(BundleError, match="give schema="): from_zoobot_checkpoint(path, **KW)
    with pytest.raises(BundleError, match="34"): from_zoobot_checkpoint(path, schema="gz2_ortho", **KW)
    model = from_zoobot_checkpoint(path, schema="decals_dr5_ortho", **KW)
    close(model.samples(pixels("tree", "fast"))[0], zoobots("tree", "fast"))

def test_own_tree_task():
    "A tree's concentrations start at 1 in zoobot, lower in zoofast"
    from zoofast.tasks.votes import VoteCounts
    with pytest.raises(BundleError, match="min_concentration=1"): load("tree", task=VoteCounts("decals_dr5_ortho"))
    model = load("tree", task=VoteCounts("decals_dr5_ortho", n_votes=40, min_concentration=1))
    preds = model.predict(FILES, progress=False)
    close(preds[columns(model)], zoobots("tree", "minimal"))
    smooth = "smooth-or-featured-dr5_smooth_fraction"
    assert (preds[f"{smooth}_lower"]<preds[f"{smooth}_upper"]).all()

def test_own_reader_and_module():
    import timm
    own = ImageReader(SIZE, crop=SIZE)
    body = timm.create_model("resnet18", num_classes=0, **ABOUT["models"]["regressor"]["timm_kwargs"])
    model = from_zoobot_checkpoint(FIX/"regressor.ckpt", encoder=body, reader=own, device="cpu")
    close(model.predict(FILES, progress=False).magnitude, zoobots("regressor", "fast").magnitude)

def test_a_compiled_encoder(tmp_path):
    "torch.compile puts a prefix before each weight's name"
    path = changed(tmp_path, weights=lambda k, v: (k.replace("encoder.", "encoder._orig_mod."), v))
    preds = from_zoobot_checkpoint(path, **KW).predict(FILES, progress=False)
    close(preds[["ring_0", "ring_1"]], zoobots("classifier2", "minimal"))

def test_normalize():
    "What zoobot's view had subtracted is part of the model"
    x = torch.from_numpy(np.load(FIX/"pixels.npz")["fast"])
    a,b = load("classifier2", normalize=([0.5]*3, [0.25]*3)),load("classifier2")
    with torch.inference_mode(): want = b.net((x/255-0.5)/0.25).softmax(1)
    close(a.samples(x)[0], want)
    assert np.abs(a.samples(x)-b.samples(x)).max()>1e-3

def test_from_a_shell(tmp_path, run_zoofast):
    res = run_zoofast("from-zoobot", FIX/"classifier2.ckpt", "--out", tmp_path/"rings", "--classes", "other,ring",
                      "--size", "64")
    assert res.returncode==0 and "zoofast predict" in res.stdout, res.stderr
    preds = load_bundle(tmp_path/"rings", device="cpu").predict(FILES, progress=False)
    close(preds[["ring_other", "ring_ring"]], zoobots("classifier2", "minimal"))

# Refused, by name

OTHER_MODEL = {"state_dict": {"layers.0.weight": torch.zeros(2, 2)}}
WRONG = {
    "a file that is text": (lambda p: p.write_text("x"*100), "no checkpoint that PyTorch Lightning wrote"),
    "an empty file": (lambda p: p.write_bytes(b""), "no checkpoint"),
    "half a checkpoint": (lambda p: p.write_bytes((FIX/"classifier2.ckpt").read_bytes()[:60000]), "cut short"),
    "weights alone": (lambda p: torch.save({"a": torch.zeros(2)}, p), "no state_dict"),
    "a list": (lambda p: torch.save([1], p), "no state_dict"),
    "no tensors": (lambda p: torch.save({"state_dict": {"encoder.x": 3}}, p), "no state_dict"),
    "another model": (lambda p: torch.save(OTHER_MODEL, p),
                      "another model than zoobot's, with weights such as 'layers.0.weight'"),
    "a zip of something else": (lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "b"), "cannot be read")}

@pytest.mark.parametrize("what", WRONG)
def test_wrong_files_are_named(what, tmp_path):
    make,why = WRONG[what]
    make(tmp_path/"x.ckpt")
    with pytest.raises(BundleError, match="x.ckpt") as e: from_zoobot_checkpoint(tmp_path/"x.ckpt", tmp_path/"out")
    assert why in str(e.value) and not (tmp_path/"out").exists()

def _no_head(k, v): return None if k.startswith("head") else (k, v)
def _no_encoder_part(k, v): return None if k=="encoder.stem.0.bias" else (k, v)
def _one_more(k, v): return "encoder.stem.9.bias" if k=="head.extra" else k,v
MISFITS = {
    "no head": (dict(weights=_no_head), {}, "lacks the head"),
    "a weight is missing": (dict(weights=_no_encoder_part), {}, "stem.0.bias"),
    "one too many": (dict(weights=_one_more), {}, "'stem.9.bias', which the encoder convnext_nano lacks"),
    "another encoder": ({}, dict(encoder="test_vit"), "is it another encoder"),
    "another width": ({}, dict(timm_kwargs=dict(dims=[8, 16, 24, 64])), "has shape"),
    "an encoder that is not there": ({}, dict(encoder="convnxt_nano"), "did you mean"),
    "too many classes": ({}, dict(classes=["a", "b", "c"]), "3 outputs"),
    "a view that is not there": ({}, dict(view="maximal"), "use 'minimal' or 'fast'"),
    "a tree's schema for a classifier": ({}, dict(task="votes"), "head is that of a classifier"),
    "a reader of grey images": ({}, dict(reader=ImageReader(SIZE, channels=1)), "gives 1 channels"),
    "a file for an encoder": (dict(hyper_parameters={"name": "local-dir:/etc"}), {}, "give encoder="),
    "an encoder from elsewhere": (dict(hyper_parameters={"name": "hf_hub:someone/theirs"}), {}, "give encoder="),
    "arguments that read files": ({}, dict(timm_kwargs=dict(checkpoint_path="/etc/passwd")), "not allowed")}

@pytest.mark.parametrize("what", MISFITS)
def test_misfits_are_named(what, tmp_path):
    from zoofast.tasks.votes import VoteCounts
    change,kw,why = MISFITS[what]
    if kw.get("task")=="votes": kw = dict(task=VoteCounts("decals_dr5_ortho"))
    path = changed(tmp_path, **change)
    if "reader" not in kw: kw = {**KW, **kw}
    with pytest.raises(BundleError, match="changed.ckpt") as e: from_zoobot_checkpoint(path, tmp_path/"out", **kw)
    assert why in str(e.value) and not (tmp_path/"out").exists()

class Run:
    "An object whose unpickling calls a function"
    def __init__(self, f, *args): self.f,self.args = f,args
    def __reduce__(self): return self.f,self.args

def hostile(tmp_path):
    "Name -> what to hide in a checkpoint's hyperparameters"
    mark = str(tmp_path/"executed")
    return {
        "os.system": Run(os.system, f"touch {mark}"),
        "eval": Run(eval, f"open({mark!r}, 'w')"),
        "open": Run(open, mark, "w"),
        "exec": Run(exec, f"open({mark!r}, 'w')"),
        "subprocess": Run(subprocess.call, ["touch", mark]),
        "path": Run(Path.touch, Path(mark)),
        "getattr": Run(getattr, "".join, "__class__"),
        "torch.load": Run(torch.load, str(FIX/"tree.ckpt")),
        "import": Run(importlib.import_module, "this")}

@pytest.mark.parametrize("what", hostile(Path("x")))
@pytest.mark.parametrize("where", ["schema", "state_dict", "beside"])
def test_hostile_checkpoints_run_nothing(what, where, tmp_path):
    evil = hostile(tmp_path)[what]
    c = torch.load(FIX/"classifier2.ckpt", weights_only=True)          # nothing else is wrong with it
    if where=="schema": c["hyper_parameters"]["schema"] = evil
    elif where=="state_dict": c["state_dict"]["encoder.y"] = evil
    else: c["callbacks"] = evil
    torch.save(c, tmp_path/"evil.ckpt")
    before = set(sys.modules)
    with pytest.raises(BundleError, match="evil.ckpt cannot be read: its pickle asks for"):
        from_zoobot_checkpoint(tmp_path/"evil.ckpt", tmp_path/"out", **KW)
    assert not (tmp_path/"executed").exists() and not (tmp_path/"out").exists()
    assert "this" not in set(sys.modules)-before

def test_that_the_payload_works(tmp_path):
    "The test above could fail: what is hidden there does run when it is unpickled"
    for what in ("os.system", "open", "subprocess", "exec"):
        pickle.loads(pickle.dumps(hostile(tmp_path)[what]))
        assert (tmp_path/"executed").exists(), what
        (tmp_path/"executed").unlink()

def test_stand_ins_run_nothing(tmp_path):
    "A name of a package that is stood in for is never looked up: numpy's own functions are not called either"
    hyper = {"class_weights": np.ones(3), "name": Run(np.save, str(tmp_path/"executed"), "x")}
    torch.save({"state_dict": {"encoder.x": torch.zeros(2)}, "hyper_parameters": hyper}, tmp_path/"np.ckpt")
    c = read_checkpoint(tmp_path/"np.ckpt")
    stood_for = [type(c["hyper_parameters"][k]).__mro__[1].__name__ for k in ("class_weights", "name")]
    assert stood_for==["_Inert", "_Inert"]
    assert not list(tmp_path.glob("executed*"))

def test_a_damaged_weight_is_refused(tmp_path):
    "One bit of the weights: torch alone would load it"
    data = bytearray((FIX/"classifier2.ckpt").read_bytes())
    data[len(data)//2] ^= 0x40
    (tmp_path/"c.ckpt").write_bytes(data)
    assert torch.load(tmp_path/"c.ckpt", map_location="cpu", weights_only=True)
    with pytest.raises(BundleError, match="is damaged: the checksum differs"): read_checkpoint(tmp_path/"c.ckpt")

def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path/"bomb.ckpt"
    with zipfile.ZipFile(FIX/"classifier2.ckpt") as a, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as b:
        for o in a.infolist():
            b.writestr(o.filename, b"\0"*10_000_000 if o.filename.endswith("data/0") else a.read(o))
    assert (tmp_path/"bomb.ckpt").stat().st_size<400_000
    with pytest.raises(BundleError, match="larger than the file"): read_checkpoint(tmp_path/"bomb.ckpt")

# The fixtures are what the script makes

def _tool():
    spec = importlib.util.spec_from_file_location("zoobot_checkpoints", HERE.parent/"tools"/"zoobot_checkpoints.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool

@pytest.mark.slow
def test_the_real_zoobot(tmp_path):
    """Checkpoints made afresh by zoobot itself, where its environment is there (python tools/zoobot_checkpoints.py
    makes it)"""
    tool = _tool()
    if tool.zoobot_python(make=False) is None: pytest.skip("no environment with zoobot")
    at = tool.make(tmp_path/"fresh")
    assert json.loads((at/"about.json").read_text())["models"]==ABOUT["models"]
    for name in MODELS:
        for view in VIEWS: close(load(name, at).samples(pixels(name, view, at))[0], zoobots(name, view, at))

def test_fixtures_are_small(): assert all(f.stat().st_size<300_000 for f in FIX.rglob("*"))
