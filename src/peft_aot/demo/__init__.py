"""The demo: three real tasks on one real backbone, end to end, and AoT beside other methods.

    carriers    where the data and the backbone lie inside installed packages
    data        which tasks there are, and their examples
    questions   the sentences asked at the end
    answer      the fresh process that answers them in one mixed batch
    finished    which trainings are done already
    comparison  measuring the methods beside each other
    results     what was measured
    report      this as Markdown
    picture     this as a picture
    journey     all of it in order

Nothing else in the package imports from here.
"""
