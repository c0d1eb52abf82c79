"""The names that a user types, written down in one place

`zoofast` itself, `zoofast.all` and each folder (`zoofast.predict`) offer the same ones, loaded when they are asked
for."""
from importlib import import_module
import lazy_loader

NAMES = {
    "core.errors":        ["CatalogError", "ImageError", "BundleError"],
    "catalog.read":       ["read_catalog"],
    "catalog.split":      ["split_catalog"],
    "encoders.encoder":   ["Encoder"],
    "encoders.sources":   ["create_encoder", "list_encoders"],
    "encoders.blocks":    ["find_blocks"],
    "images.reader":      ["ImageReader", "fit_reader"],
    "tasks.schema":       ["Schema", "schema_names"],
    "tasks.task":         ["Task"],
    "tasks.classes":      ["Classification", "MultiLabel"],
    "tasks.regression":   ["Regression"],
    "tasks.votes":        ["VoteCounts"],
    "tasks.rare":         ["Rare"],
    "tasks.infer":        ["score_predictions"],
    "data.check":         ["check_catalog", "CatalogCheck"],
    "data.pictures":      ["make_catalog"],
    "data.cache":         ["list_cache", "clear_cache"],
    "data.augment":       ["GalaxyAugment"],
    "data.loaders":       ["GalaxyDataLoaders"],
    "training.freezing":  ["freeze_layers", "unfreeze_layers"],
    "training.probe":     ["doubtful_labels"],
    "training.runs":      ["list_runs", "compare_runs"],
    "training.schedules": ["list_schedulers", "plot_schedule"],
    "training.learner":   ["GalaxyLearner"],
    "training.finetune":  ["galaxy_learner"],
    "bundles.model":      ["GalaxyModel"],
    "bundles.bundle":     ["load_bundle"],
    "bundles.save":       ["push_to_hub"],
    "bundles.zoobot":     ["from_zoobot_checkpoint"],
    "predict.table":      ["predict_catalog", "represent"],
    "predict.answers":    ["Answers"],
    "predict.features":   ["compress_features", "read_pca"],
    "predict.similar":    ["build_index", "find_similar"],
    "predict.ranked":     ["rank_galaxies"],
    "predict.maps":       ["map_features", "plot_map"],
    "plots.galaxies":     ["mosaic", "plot_mosaic"],
    "plots.training":     ["plot_history", "plot_rates", "plot_groups"],
    "plots.classes":      ["plot_confusion", "plot_roc", "plot_precision_recall", "plot_reliability"],
    "plots.numbers":      ["plot_numbers", "plot_votes", "plot_label_curve", "save_pictures"],
    "plots.looks":        ["plot_looks"],
    "reports.report":     ["make_report"],
    "sweep.settings":     ["read_settings"],
    "sweep.trials":       ["SweepData", "run_sweep", "open_sweep"],
    "sweep.page":         ["plot_best", "plot_importance", "plot_parameter", "plot_parallel", "plot_models",
                           "compare_models", "write_page"],
    "simulate":           ["simulate_survey", "simulate_tiles"],
}
FOLDERS = list(dict.fromkeys(o.split(".")[0] for o in NAMES))+["cli"]

# What higher floors add to a class of a lower one comes with the folder that offers it: saving and pictures with a
# learner
ADDED = {
    "data":     ["data.items", "plots.notebook"],
    "tasks":    [],
    "training": ["training.finetune", "training.profile", "bundles.save", "plots.notebook"],
    "bundles":  ["training.profile", "bundles.save", "bundles.onnx", "plots.notebook"],
    "predict":  ["plots.notebook"],
}

def offer(
    package:str # `__name__` of the package
):              # Its `__getattr__`, `__dir__` and `__all__`
    "The public names of a package, each loaded when it is asked for (SPEC 1)"
    root,_,folder = package.partition(".")
    names = NAMES
    if folder: names = {k.partition(".")[2]: v for k,v in NAMES.items() if k.split(".")[0]==folder}
    get,listed,every = lazy_loader.attach(package, FOLDERS if not folder else [], names)
    home = {n: k for k,v in NAMES.items() for n in v}
    def __getattr__(name):
        found = get(name)
        if name in home and name!="check_catalog":
            for o in ADDED.get(home[name].split(".")[0], ()): import_module(f"{root}.{o}")
        return found
    return __getattr__,listed,every
