"""Checkpoints made and predictions written by the real zoobot 2.9.0, for tests/test_zoobot.py:
`python tools/zoobot_checkpoints.py [--out FOLDER]`.

zoobot and what it needs are installed once into an environment of their own (`--venv`;
~/.cache/zoofast-benchmarks/zoobot-2.9.0-... unless given), which sees this environment's torch, so that only a few
small packages are fetched. In it, six models of a tiny encoder are trained for four epochs on simulated galaxies and
saved by zoobot's own trainer, and zoobot's own `predict` predicts a few galaxies with each of its two pipelines for
images. No network is used: what zoobot would fetch from the Hugging Face hub lies in a cache made for it, with random
weights of a tiny encoder of the same family.

The folder then holds `<model>.ckpt`, `<model>_<pipeline>.csv` (predictions), `images/` (the galaxies: four of the
models' size, four larger, four neither square nor even), `pixels.npz` (what zoobot's pipelines made of them, bytes) and
`about.json` (versions, and how each model was made)."""
import argparse, importlib.metadata, json, os, shutil, subprocess, sys, tempfile, venv
from pathlib import Path

ZOOBOT = ["zoobot==2.9.0", "galaxy-datasets==0.0.25"]
NEEDS = ["datasets>=3.6", "omegaconf", "pytorch-lightning>=2.0", "lightning>=2.2.5", "requests", "scikit-learn", "h5py"]
FIXTURES = Path(__file__).resolve().parent.parent/"tests"/"fixtures"/"zoobot"
SIZE,LARGE,N = 64,96,4
NANO = dict(depths=[1, 1, 1, 1], dims=[8, 16, 24, 32])           # a convnext_nano of 26,000 weights
RESNET = dict(layers=[1, 1, 1, 1], channels=[8, 8, 16, 32])      # a resnet18 of 35,000, for its BatchNorm
HUB = "hf_hub:mwalmsley/zoobot-encoder-"

def place():
    "Where the environment is unless told otherwise"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")
    return cache/"zoofast-benchmarks"/f"zoobot-2.9.0-{sys.version_info[0]}.{sys.version_info[1]}"

def zoobot_python(folder=None, make=True):
    "The Python of an environment with zoobot; `None` where there is none and none is to be made"
    folder = Path(folder or place())
    python = folder/"bin"/"python"
    shared = next((folder/"lib").glob("python*/site-packages/shared.pth"), None)
    # the environment whose packages it sees may have gone
    sees = shared and all(Path(o).is_dir() for o in shared.read_text().splitlines())
    ready = (folder/"done").exists() and sees
    if ready or not make: return python if ready else None
    venv.create(folder, with_pip=True, clear=True)
    site = next((folder/"lib").glob("python*/site-packages"))
    (site/"shared.pth").write_text("\n".join(o for o in sys.path if o.endswith("site-packages"))+"\n")
    keep = folder/"constraints.txt"
    ours = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow")
    keep.write_text("".join(f"{o}=={importlib.metadata.version(o)}\n" for o in ours))
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", keep, *NEEDS], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "--no-deps", *ZOOBOT], check=True, stdout=sys.stderr)
    (folder/"done").touch()
    return python

def simulate(folder):
    "Galaxies to learn from (64, of the models' size), and those to predict, in `images/`"
    from PIL import Image
    from zoofast.simulate import simulate_survey
    train = simulate_survey(folder/"train", 64, size=SIZE, seed=1, fits=False, progress=False)
    (folder/"out"/"images").mkdir(parents=True)
    for name,size in (("even", SIZE), ("large", LARGE), ("odd", 120)):
        galaxies = simulate_survey(folder/name, N, size=size, seed=size, fits=False, progress=False)
        for i,f in enumerate(galaxies.file_loc):
            at = folder/"out"/"images"/f"{name}-{i}.jpg"
            if name=="odd": Image.open(f).crop((0, 6, 120, 103)).save(at, quality=95)
            else: shutil.copyfile(f, at)
    train["kind"] = train.morphology.astype("category").cat.codes.astype(int)
    train["ring"] = (train.morphology=="ring").astype(int)
    train["ellipticity"] = (1-train.inclination/90).fillna(0.5).astype("float32")
    train["magnitude"] = train.mag_r.astype("float32")
    train.to_csv(folder/"train.csv", index=False)

# From here on in zoobot's environment

def fake_hub(folder, name, arch, kwargs):
    "A repository of the Hugging Face hub in a local cache, with an encoder of random weights"
    import timm, torch
    from safetensors.torch import save_file
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=0, pretrained=False, **kwargs)
    at = folder/("models--"+name.replace("/", "--"))
    (at/"refs").mkdir(parents=True)
    (at/"refs"/"main").write_text("0"*40)
    snap = at/"snapshots"/("0"*40)
    snap.mkdir(parents=True)
    save_file(model.state_dict(), snap/"model.safetensors", metadata={"format": "pt"})
    config = dict(architecture=arch, num_classes=0, num_features=model.num_features,
                  pretrained_cfg=dict(input_size=[3, 224, 224], num_classes=0))
    (snap/"config.json").write_text(json.dumps(config))

def models():
    "Name -> class of zoobot's, its arguments, label columns, what is predicted, greyscale?"
    import timm, torch
    from zoobot.pytorch.training import finetune as z
    from zoobot.shared import schemas
    def own():
        torch.manual_seed(1)
        return timm.create_model("resnet18", num_classes=0, pretrained=False, **RESNET)
    def nano(name="convnext_nano", **kw):
        return dict(name=HUB+name, timm_kwargs=dict(NANO), **kw)      # zoobot writes into `timm_kwargs`
    classifier,regressor,of_tree = z.FinetuneableZoobotClassifier,z.FinetuneableZoobotRegressor,z.FinetuneableZoobotTree
    grey = nano("greyscale-convnext_nano", num_classes=5, label_col="kind", greyscale=True, head_dropout_prob=0.2)
    kinds = [str(i) for i in range(5)]
    unit = nano(label_col="ellipticity", unit_interval=True, training_mode="head_only")
    tree = schemas.decals_dr5_ortho_schema
    answers = {"smooth-or-featured-dr5": ["_smooth", "_featured-or-disk", "_artifact"],
               "disk-edge-on-dr5": ["_yes", "_no"]}
    asked_after = {"smooth-or-featured-dr5": None, "disk-edge-on-dr5": "smooth-or-featured-dr5_featured-or-disk"}
    small_tree = schemas.Schema(answers, asked_after)
    return {
        "classifier2": (classifier, nano(num_classes=2, label_col="ring"), ["ring"], ["other", "ring"], False),
        "classifier5_grey": (classifier, grey, ["kind"], kinds, True),
        "regressor": (regressor, dict(encoder=own(), label_col="magnitude", loss="mae"),
                      ["magnitude"], ["magnitude"], False),
        "regressor_unit": (regressor, unit, ["ellipticity"], ["ellipticity"], False),
        "tree": (of_tree, nano(schema=tree), tree.label_cols, tree.label_cols, False),
        "tree_own": (of_tree, dict(encoder=own(), schema=small_tree), None, None, False),
    }

def pipelines():
    "zoobot's two pipelines for images, by name"
    from galaxy_datasets.transforms import fast_view_config, minimal_view_config
    return {"minimal": minimal_view_config, "fast": fast_view_config}

def view(make, grey):
    "One of the pipelines, for images of our size"
    from galaxy_datasets.transforms import get_galaxy_transform
    cfg = make()
    cfg.output_size,cfg.greyscale = SIZE,grey
    return get_galaxy_transform(cfg)

def pixels(files):
    "What each of the pipelines makes of the images, in colour and in grey: bytes"
    import numpy as np
    from galaxy_datasets.pytorch.galaxy_dataset import load_img_file
    def seen(f): return (view(make, grey)(load_img_file(str(f))).numpy()*255).round().astype(np.uint8)
    res = {}
    for kind,make in pipelines().items():
        for grey in (False, True): res[kind+"_grey"*grey] = np.stack([seen(f) for f in files])
    return res

def train(model, catalog, cols, grey, folder):
    "Train with zoobot's trainer; the file of the best epoch, whose weights the model then has"
    import lightning as L, torch
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import default_view_config, minimal_view_config
    from zoobot.pytorch.training.finetune import get_trainer
    L.seed_everything(0)
    data = CatalogDataModule(cols, view(default_view_config, grey), view(minimal_view_config, grey), catalog=catalog,
                             batch_size=16, num_workers=0)
    trainer = get_trainer(str(folder), max_epochs=4, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, data)
    best = Path(trainer.checkpoint_callback.best_model_path)
    model.load_state_dict(torch.load(best, weights_only=False)["state_dict"])
    return best

def inside(folder):
    "Train, save and predict with zoobot"
    folder = Path(folder)
    os.environ.update(HF_HUB_CACHE=str(folder/"hub"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    for name,kw in (("convnext_nano", {}), ("greyscale-convnext_nano", dict(in_chans=1))):
        fake_hub(folder/"hub", f"mwalmsley/zoobot-encoder-{name}", "convnext_nano", {**NANO, **kw})
    import lightning as L, numpy as np, pandas as pd
    from zoobot.pytorch.predictions.predict_on_catalog import predict
    out,catalog = folder/"out",pd.read_csv(folder/"train.csv", dtype={"id_str": str})
    catalog = catalog.astype({"magnitude": "float32", "ellipticity": "float32"})
    catalog["file_loc"] = [str(folder/"train"/"images"/Path(f).name) for f in catalog.file_loc]
    files = sorted((out/"images").glob("*.jpg"))
    todo = pd.DataFrame(dict(id_str=[f.stem for f in files], file_loc=[str(f) for f in files]))
    np.savez_compressed(out/"pixels.npz", **pixels(files))
    packages = ("zoobot", "galaxy-datasets", "lightning", "torch", "timm", "torchvision", "pillow")
    about = dict(versions={p: importlib.metadata.version(p) for p in packages}, models={})
    for name,(cls,kw,cols,names,grey) in models().items():
        L.seed_everything(0)
        model = cls(**kw, learning_rate=1e-2)
        cols,names = cols or model.schema.label_cols,names or model.schema.label_cols
        shutil.copyfile(train(model, catalog, cols, grey, folder/name), out/f"{name}.ckpt")
        for kind,make in pipelines().items():
            predict(todo, model, str(out/f"{name}_{kind}.csv"), list(names), view(make, grey),
                    dict(batch_size=N, num_workers=0),
                    dict(accelerator="cpu", logger=False, enable_progress_bar=False))
        about["models"][name] = dict(cls=cls.__name__, grey=grey,
                                     classes=names if "Classifier" in cls.__name__ else None,
                                     encoder=kw.get("name") or "resnet18",
                                     timm_kwargs=kw.get("timm_kwargs") and NANO or RESNET)
    (out/"about.json").write_text(json.dumps(about, indent=1)+"\n")

def make(out=FIXTURES, folder=None):
    "Make the checkpoints, with what else the tests need, in the folder `out`, whose former files are replaced"
    python,out = zoobot_python(folder),Path(out)
    with tempfile.TemporaryDirectory() as tmp:
        simulate(Path(tmp))
        env = {k: v for k,v in os.environ.items() if k!="PYTHONPATH"}
        env |= dict(CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
        command = [python, Path(__file__).resolve(), "--inside", tmp]
        subprocess.run(command, check=True, stdout=sys.stderr, env=env, cwd=tmp)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(tmp)/"out", out)
    return out

if __name__=="__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=FIXTURES)
    p.add_argument("--venv", type=Path, help="folder of zoobot's environment")
    p.add_argument("--inside", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.inside: inside(args.inside)
    else: print(make(args.out, args.venv))
