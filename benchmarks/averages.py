"""Which average of the weights is best? Accuracy on the galaxies of gz1.py with one training's weights, averaged in
several ways.

    python benchmarks/averages.py [--seeds 0 1 2] [--epochs 5] [--size 128] [--encoder tf_efficientnet_lite0]

`kept` is what `fine_tune` keeps, `last` the weights after the last step, `decay d` a moving average of that decay,
`mix a` the way from the start of the second stage (0) to its end (1): Wortsman et al. 2022 (WiSE-FT,
arXiv:2109.01903); `two epochs` the mean of the weights after the last two, `tta=8` what is kept, with eight views. The
split, the head's first weights and the training follow the seed, as in gz1.py. Batch normalisations keep their means,
so that averaged weights need no others. One line a seed and average, then the means.
"""
import argparse, copy, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from fastai.callback.core import Callback
from timm.utils import ModelEmaV3
from gz1 import galaxies, learner, predict_catalog, score_predictions

DECAYS,MIXES = (.9, .95, .98, .99),(.6, .8, .9, 1.15)
SCORES = ["accuracy", "balanced_accuracy", "roc_auc"]

class Watch(Callback):
    "Keeps the weights at the start of the second stage and after each of its epochs, and averages of them"
    order = 80                                         # after the optimizer's step
    start = None
    def before_fit(self):
        if self.opt.frozen_idx>=len(self.opt.groups)-1: return
        self.start,self.epochs = copy.deepcopy(self.learn.net.state_dict()),[]
        self.means,self.steps = {d: ModelEmaV3(self.learn.net, decay=d) for d in DECAYS},0
    def after_step(self):
        if not self.start: return
        self.steps += 1
        for o in self.means.values(): o.update(self.learn.net, self.steps)
    def after_train(self):
        if self.start: self.epochs.append(copy.deepcopy(self.learn.net.state_dict()))

def mix(a, b, t): return {k: v.lerp(b[k], t) if v.is_floating_point() else b[k] for k,v in a.items()}

def run(df, seed, args):
    "Rows of scores, by average"
    watch = Watch()
    learn,test = learner(df, seed, args.encoder, args.size, cbs=watch, bn_stats="keep")
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    kept,last = copy.deepcopy(learn.net.state_dict()),watch.epochs[-1]
    weights = {"kept": kept, "last": last, **{f"decay {d}": o.module.state_dict() for d,o in watch.means.items()},
               **{f"mix {t}": mix(watch.start, last, t) for t in MIXES},
               "two epochs": mix(watch.epochs[-2], last, .5), "tta=8": kept}
    for name,w in weights.items():
        learn.net.load_state_dict(w)
        preds = predict_catalog(learn, test, progress=False, tta=8 if name=="tta=8" else 0)
        s = score_predictions(preds, test, learn.task)
        print(seed, name, *(f"{k} {s[k]:.3f}" for k in SCORES), flush=True)
        yield dict(seed=seed, average=name, **{k: s[k] for k in SCORES})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    args = p.parse_args()
    df = galaxies()
    rows = pd.DataFrame([r for s in args.seeds for r in run(df, s, args)])
    print(rows.groupby("average", sort=False)[SCORES].mean().round(3).to_string())

if __name__=="__main__": main()
