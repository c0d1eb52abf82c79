"""Finetune pretrained vision encoders on galaxy images, with fastai and timm

Modules:

- `zoofast.answers`: Predictions beside what the catalogue says, galaxy by galaxy
- `zoofast.augment`: Random views of galaxies, a whole batch at a time
- `zoofast.bundle`: Save and load a finetuned model as a folder without pickle
- `zoofast.calibration`: Probabilities that mean what they say, and sets of answers that hold the truth as often as asked
- `zoofast.card`: What a model is, for people: its model card
- `zoofast.catalog`: A table of galaxies: read, check, split
- `zoofast.checkpoints`: The best model in hand, the whole run on disk
- `zoofast.classes`: What tasks share; one of several classes, several labels at once
- `zoofast.cli`: The `zoofast` command
- `zoofast.data`: Catalogue and task to fastai `DataLoaders`, with augmentation
- `zoofast.distributed`: Training on several devices, with fastai's `distrib_ctx` and accelerate
- `zoofast.encoders`: A timm encoder and a head; where its weights come from
- `zoofast.engines`: What runs an encoder for prediction: torch, ONNX Runtime or OpenVINO, checked before it is used
- `zoofast.export`: A finetuned model as one ONNX file, for those who have no torch
- `zoofast.fits`: The flux in a FITS file, wherever it is
- `zoofast.freezing`: What is frozen stays as it is, and costs as little as that allows
- `zoofast.groups`: Parameter groups: layer decay, weight decay, freezing, the optimizer
- `zoofast.hub`: Give a model to others: push a bundle to the Hugging Face hub
- `zoofast.images`: One image file (jpg, png, tiff, FITS) to one tensor: bands, stretch, size
- `zoofast.learner`: `galaxy_learner`, `fine_tune`
- `zoofast.loop`: A fastai `Learner` whose runs repeat, resume, and end with their best model
- `zoofast.losses`: What training makes small: class weights, label smoothing, focal loss, or a loss of your own
- `zoofast.maps`: A survey in two dimensions, with like beside like
- `zoofast.measures`: Losses and metrics in which missing answers do not count
- `zoofast.optimizers`: Any optimizer of torch or timm, by its name
- `zoofast.paths`: Where the images of a million galaxies are
- `zoofast.plots`: Pictures for each question a user asks of a run; every function returns matplotlib Axes
- `zoofast.plots_features`: Where an encoder looks
- `zoofast.precision`: Mixed precision where it is faster and safe
- `zoofast.predict`: Catalogue in, table of predictions or representations out
- `zoofast.report`: One HTML file that tells a run's whole story
- `zoofast.representations`: Tables of features read piece by piece, and compressed with a PCA that is kept
- `zoofast.runs`: The folders of trained models: listed, sorted, compared
- `zoofast.save`: A learner writes its bundle, its model card and its encoder
- `zoofast.schedules`: Learning-rate schedules: timm's and fastai's, followed by every group
- `zoofast.schema`: The decision tree that volunteers walk through
- `zoofast.search`: Trials that several processes share: each done once, none too many, killed ones done again
- `zoofast.settings`: A file of settings to try, in the form of a Weights & Biases sweep: read, checked, and turned into parameters
- `zoofast.shards`: A long table in pieces, each written whole or not at all, by any number of processes
- `zoofast.share`: The commands that pass a model on
- `zoofast.similar`: The galaxies most like one of them, in a table or in an index of millions
- `zoofast.simulate`: A simulated survey with known truth: images, FITS cubes, a catalogue and volunteer votes
- `zoofast.store`: Images decoded once, kept as bytes
- `zoofast.stream`: A catalogue of any size, piece by piece
- `zoofast.stretch`: Flux to bytes: which stretch, and on what scale
- `zoofast.tables`: Whatever holds a table of galaxies, as a DataFrame
- `zoofast.tasks`: Which task a catalogue asks for, and how good its predictions are
- `zoofast.terminal`: How the commands behave: options, messages, progress, several processes
- `zoofast.tracking`: The folder of a run: what was asked for, how it went, how it ended
- `zoofast.untrusted`: Files from strangers: found, checked, and read once
- `zoofast.votes`: The likelihood of volunteers' votes, and what it says about fractions
- `zoofast.zoobot`: A model that zoobot finetuned, as one of zoofast's"""

__version__ = "0.1.0"
