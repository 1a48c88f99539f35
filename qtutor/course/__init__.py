"""The course around its notebooks.

    notebooks    a notebook run from beginning to end
    handout      the lessons of a wheel, laid into a folder of the learner's
    own          the notebook for a model of one's own, made of `own_model.md`
    example      a model and data for `qtutor diagnose`
    preflight    whether a computer is ready
    alive, book  the site to read: what answers there without a kernel, and its pages
    reference    what the cells of each lesson printed on one computer

`teaching` holds the pages for instructors, `jupyter` what JupyterLab gets. What each lesson is and needs says
`qtutor.manifest`.
"""
