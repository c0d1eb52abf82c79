"""Radio galaxies from one-band FITS: FR I against FR II, with grey repeated in three channels and with one channel, by
stretch.

    python benchmarks/mirabest.py [--data ../shared/data/mirabest] [--size 128] [--epochs 8] [--seeds 3]

Validation accuracy and ROC AUC of the best epoch, on 30 % of 120 galaxies; each seed has its own split.
"""
import argparse, json, os, platform, warnings
warnings.filterwarnings("ignore")
from datetime import date
from pathlib import Path
import numpy as np, pandas as pd, timm, torch
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.images.reader import ImageReader
from zoofast.training.finetune import galaxy_learner

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path(os.environ.get("ZOOFAST_DATA") or "../shared/data")/"mirabest")
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--epochs", type=int, default=8)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--stretches", nargs="+", default=["auto", "linear", "log", "zscale"])
    args = p.parse_args()
    df = pd.read_csv(args.data/"labels.csv")
    df = df.assign(id_str=df.file_loc, file_loc=[str((args.data/f).resolve()) for f in df.file_loc])
    rows = []
    print("channels stretch   accuracy by seed, mean        ROC AUC by seed, mean")
    for channels in (3, 1):
        for stretch in args.stretches:
            best = []
            for seed in range(args.seeds):
                reader = ImageReader(args.size, channels, stretch)
                dls = GalaxyDataLoaders.from_catalog(df, "label", reader=reader, valid=0.3, seed=seed, cache="memory",
                                                     progress=False)
                learn = galaxy_learner(dls, args.encoder, seed=seed)
                with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, freeze_epochs=3)
                h = pd.DataFrame(learn.history)
                best.append(h.loc[h.valid_loss.idxmin(), ["accuracy", "roc_auc"]].astype(float).tolist())
            acc,auc = np.array(best).T
            rows.append(dict(channels=channels, stretch=stretch, accuracy=acc.round(3).tolist(),
                             roc_auc=auc.round(3).tolist()))
            said = "  ".join(f"{' '.join(f'{v:.3f}' for v in o)}, {o.mean():.3f}" for o in (acc, auc))
            print(f"{channels:8} {stretch:8} {said}", flush=True)
    device = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result = dict(date=str(date.today()), device=device, torch=torch.__version__, timm=timm.__version__,
                  encoder=args.encoder, size=args.size, epochs=args.epochs, rows=rows)
    (Path(__file__).parent/"results"/"mirabest.json").write_text(json.dumps(result, indent=1)+"\n")

if __name__=="__main__": main()
