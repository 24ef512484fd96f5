"""Ways of composing LoRAs, measured in the tiny world; `python -m lab.evaluate` runs it.

Each module needs only those above it:

    captions        which skills a picture is asked for, and in which split
    boxes           where a figure is to stand, and whether it does
    ways            how a picture is made
    patches         how far a picture is from its caption
    divergence      how far each LoRA alone is from the base, with its word and without
    measurements    what was measured: the results' lines, and means with intervals
    couple          regional prompts by attention, to compare with
    studio          makes and measures the pictures
    choices         which variant becomes the default
    tables, plots   what was measured, to be read
    report          docs/evaluation.md
    places_report   docs/evaluation-places.md
    price_report    docs/evaluation-price.md
    pools_report    docs/evaluation-pools.md
"""
