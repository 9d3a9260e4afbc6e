"""A page in the browser on which a model is tried.

Here: the models' answers as JSON, the page that shows them, and its server, which is Gradio's.
Not here: anything that trains, or that another package needs.

`page.js` draws every answer, in the served page and in the exported one. It puts texts in by `textContent` alone.
"""
