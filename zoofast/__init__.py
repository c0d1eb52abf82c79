"""Finetune pretrained vision encoders on galaxy images, with fastai and timm

Modules:

- `zoofast.bundles.bundle`: Save and load a finetuned model as a folder without pickle
- `zoofast.bundles.card`: What a model is, for people: its model card
- `zoofast.bundles.from_run`: A bundle of the best epoch of a run that was broken off
- `zoofast.bundles.model`: A finetuned model, to predict with
- `zoofast.bundles.onnx`: A finetuned model as one ONNX file, for those who have no torch
- `zoofast.bundles.save`: A learner writes its bundle, its model card and its encoder
- `zoofast.bundles.zoobot`: A model that zoobot finetuned, as one of zoofast's
- `zoofast.catalog.astronomy`: FITS tables, VOTables, ECSV and astropy's own, as a DataFrame
- `zoofast.catalog.paths`: Where the images of a million galaxies are
- `zoofast.catalog.read`: A table of galaxies, read from whatever file it is in
- `zoofast.catalog.split`: Galaxies for training, validation and test
- `zoofast.catalog.stream`: A catalogue of any size, piece by piece
- `zoofast.catalog.tables`: Whatever holds a table of galaxies, as a DataFrame
- `zoofast.catalog.tiles`: In which tile of a survey each galaxy lies
- `zoofast.catalog.write`: Tables on the disk: written whole, read as far as needed
- `zoofast.cli.app`: How the commands behave: messages, progress, mistakes, exit codes
- `zoofast.cli.check`: The commands that look before anything is trained: at catalogues, pictures, encoders, and decoded images
- `zoofast.cli.finetune`: Training from a shell: finetune, demo
- `zoofast.cli.main`: The `zoofast` command
- `zoofast.cli.options`: What commands are given, and what it asks for
- `zoofast.cli.predict`: The commands that use a model: predict, represent, similar
- `zoofast.cli.runs`: The commands that tell of runs that were: runs, report
- `zoofast.cli.share`: The commands that pass a model on
- `zoofast.cli.sweep`: A search for the best settings, from a shell
- `zoofast.core.checks`: A number, or one of several words: what was given is checked before anything is done
- `zoofast.core.errors`: What goes wrong is said in one sentence
- `zoofast.core.files`: Files written whole or not at all, known again, and where they are kept
- `zoofast.data.augment`: Random views of galaxies, a whole batch at a time
- `zoofast.data.cache`: Where decoded images are kept, and how much room they take
- `zoofast.data.check`: Which rows of a catalogue can be used, and why the others cannot
- `zoofast.data.items`: New images, batches in words and pictures of them: what fastai asks of its `DataLoaders`
- `zoofast.data.loaders`: Catalogue and task to fastai `DataLoaders`, with augmentation
- `zoofast.data.pictures`: A catalogue of what has none: a stack of pictures, an archive, a folder
- `zoofast.data.store`: Images decoded once, kept as bytes
- `zoofast.encoders.compute`: The same encoder, faster: memory layout, memory that is kept, folded norms, compiled kernels, mixed precision
- `zoofast.encoders.engines`: What runs an encoder for prediction: torch, ONNX Runtime or OpenVINO, checked before it is used
- `zoofast.encoders.hub`: Models by their names: from timm, a folder, the hub or its cache
- `zoofast.encoders.safe_files`: Files from strangers: found, checked, and read once
- `zoofast.encoders.sources`: Any encoder by its name, and where its weights come from
- `zoofast.images.archives`: Pictures in a zip or tar, and the arrays of a npz, without unpacking
- `zoofast.images.arrays`: An array that numpy has saved, as flux or as pixels
- `zoofast.images.cutouts`: Galaxies cut from the tiles of a survey, by their place on the sky
- `zoofast.images.fits`: The flux in a FITS file, wherever it is
- `zoofast.images.no_flux`: Which pixels have no flux, and how bright the sky is around them
- `zoofast.images.parallel`: Many images read at once, by several processes where that pays
- `zoofast.images.reader`: One image file (jpg, png, tiff, FITS, npy) to one tensor: bands, stretch, size
- `zoofast.images.stacks`: Pictures by their number in one array: npy, HDF5, Zarr
- `zoofast.images.stretch`: Flux to bytes: which stretch, and on what scale
- `zoofast.plots.classes`: Pictures of how good classes and labels are: confusion, ROC and precision-recall curves, reliability
- `zoofast.plots.galaxies`: Galaxies side by side
- `zoofast.plots.looks`: Where an encoder looks
- `zoofast.plots.notebook`: How learners, models, tasks, trees and checks show themselves in a notebook
- `zoofast.plots.numbers`: Pictures of how good numbers and votes are, of how many labels are needed, and the pictures of a run
- `zoofast.plots.style`: What all pictures share: colours, names, axes
- `zoofast.plots.training`: Pictures of how training went: losses, learning rates, parameter groups
- `zoofast.predict.answers`: Predictions beside what the catalogue says, galaxy by galaxy
- `zoofast.predict.features`: Tables of features read piece by piece, and compressed with a PCA that is kept
- `zoofast.predict.maps`: A survey in two dimensions, with like beside like
- `zoofast.predict.shards`: A long table in pieces, each written whole or not at all, by any number of processes
- `zoofast.predict.similar`: The galaxies most like one of them, in a table or in an index of millions
- `zoofast.predict.table`: Catalogue in, table of predictions or representations out
- `zoofast.reports.content`: What goes on the page of a report: galaxies, words and tables
- `zoofast.reports.figures`: The pictures of a report, as SVG that follows the page
- `zoofast.reports.report`: One HTML file that tells a run's whole story
- `zoofast.simulate`: A simulated survey with known truth: images, FITS cubes, a catalogue and volunteer votes
- `zoofast.sweep.page`: What a sweep tells: pictures, a table, one page
- `zoofast.sweep.search`: Trials that several processes share: each done once, none too many, killed ones done again
- `zoofast.sweep.settings`: A file of settings to try, in the form of a Weights & Biases sweep: read, checked, and turned into parameters
- `zoofast.sweep.trials`: Which settings finetune best on your galaxies?
- `zoofast.tasks.calibration`: Probabilities that mean what they say, and sets of answers that hold the truth as often as asked
- `zoofast.tasks.classes`: What tasks share; one of several classes, several labels at once
- `zoofast.tasks.infer`: Which task a catalogue asks for, and how good its predictions are
- `zoofast.tasks.losses`: What training makes small: class weights, label smoothing, focal loss, or a loss of your own
- `zoofast.tasks.metrics`: Losses and metrics in which missing answers do not count
- `zoofast.tasks.schema`: The decision tree that volunteers walk through
- `zoofast.tasks.votes`: The likelihood of volunteers' votes, and what it says about fractions
- `zoofast.training.checkpoints`: The best model in hand, the whole run on disk
- `zoofast.training.distributed`: Training on several devices, with fastai's `distrib_ctx` and accelerate
- `zoofast.training.finetune`: `galaxy_learner`, `fine_tune`
- `zoofast.training.freezing`: What is frozen stays as it is, and costs as little as that allows
- `zoofast.training.learner`: A fastai `Learner` whose runs repeat, resume, and end with their best model
- `zoofast.training.optimizer`: The optimizer: a learning rate for each block (layer decay), weight decay, freezing
- `zoofast.training.parameters`: One table of all parameters of a training
- `zoofast.training.profile`: Where an epoch's time goes, and how near it is to the device's limit
- `zoofast.training.recorder`: What is measured in an epoch, in the catalogue's units and class by class
- `zoofast.training.results`: What a learner says of galaxies: `predict`, `get_preds`, `tta`, `show_results`
- `zoofast.training.run_folder`: The folder of a run: what was asked for, how it went, how it ended
- `zoofast.training.runs`: The folders of trained models: listed, sorted, compared
- `zoofast.training.schedules`: Learning-rate schedules: timm's and fastai's, followed by every group
- `zoofast.training.wandb`: A run's story on Weights & Biases"""

__version__ = "0.1.0"

from zoofast._names import offer

__getattr__,__dir__,__all__ = offer(__name__)
