"""Numbers that the paper, and the papers and code it builds on, have published. Uses only the standard library."""

import math

# Table 2: test error on CIFAR-10 without data augmentation, per cent.
TABLE2 = {"wn": 8.46, "normal": 8.43, "bn": 8.05, "wn+mobn": 7.31}
TABLE2_NAMES = {
    "wn": "weight normalization",
    "normal": "normal parameterization",
    "bn": "batch normalization",
    "wn+mobn": "weight norm. + mean-only b.n.",
}
TABLE2_EARLIER = {
    "Maxout (Goodfellow et al., 2013)": 11.68,
    "Network in Network (Lin et al., 2014)": 10.41,
    "Deeply Supervised (Lee et al., 2014)": 9.60,
    "ConvPool-CNN-C (Springenberg et al., 2015)": 9.31,
    "ALL-CNN-C (Springenberg et al., 2015)": 9.08,
}
EPOCHS = 200  # §5.1
DECAY_FROM = 100  # §5.1
LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01)  # §5.1: searched
DIVERGING_LR = 0.003  # figure 1, of the normal parameterization
BN_STEP_TIME = 1.16  # §5.1: bn's step time over normal's
V_NORM_MAX = 0.25  # §6.2: the bound on ‖v‖

# §5.2 prints no number, only figure 2. The models are from the IAF paper (Kingma et al., 2016), which prints their
# final test bounds: for MNIST mean and ± in nats, for CIFAR-10 bits per dimension.
FIGURE2 = ("mnist", "cifar10")  # its panels
IAF_MNIST = {
    "diagonal Gaussian": (-84.08, 0.10),
    "IAF of depth 2, width 320": (-82.02, 0.08),
    "IAF of depth 2, width 1920": (-81.17, 0.08),
    "IAF of depth 4, width 1920": (-80.93, 0.09),
    "IAF of depth 8, width 1920": (-80.80, 0.07),
}
IAF_CIFAR10 = {"IAF, depths 10 and 10, 160 maps": 3.28, "its best model": 3.11}

# §5.3 prints no number, only figure 3. Others have reported these epochs and test bounds in nats on binarized MNIST: in
# issue 4 of jbornschein/draw, the code that the paper starts from (its author: "~83"), and in DRAW's paper.
DRAW_MNIST = {
    "jbornschein/draw, a user's run": ("100", -90.5),
    "jbornschein/draw, its author's run": ("over 100", -83.0),
    "Gregor et al. (2015)": ("", -80.97),
}

# Table 3: maximum test score of one run each. TABLE3_MNIH: scores of Mnih et al. (2015).
TABLE3 = {
    "breakout": {"normal": 410, "wn": 403},
    "enduro": {"normal": 1250, "wn": 1448},
    "seaquest": {"normal": 7188, "wn": 7375},
    "space_invaders": {"normal": 1779, "wn": 2179},
}
TABLE3_MNIH = {"breakout": 401, "enduro": 302, "seaquest": 5286, "space_invaders": 1975}
TABLE3_LOG_RATIO = sum(math.log(scores["wn"] / scores["normal"]) for scores in TABLE3.values()) / len(TABLE3)
FIGURE4 = "space_invaders"  # its game
AGENT_STEPS = 50_000_000  # of every run: 200 epochs of 250 000 (authors' code)
DQN_MINIBATCH = 64  # §5.4


def game_name(game: str) -> str:
    """Format the name of a game, such as `Space Invaders`."""
    return game.replace("_", " ").title()
