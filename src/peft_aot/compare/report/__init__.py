"""What a comparison shows people: `write.write_report(summary, folder)`.

    entries   what one cell of a table shows
    table     rows, columns, notes: once, for all renderings
    terminal, markdown, latex, numbers    the table in a terminal, as Markdown, as LaTeX, as CSV
    styles, labels, stretched    a look per method; labels that do not overlap; axes with room where it is crowded
    curves, scatter, figures    the pictures, drawn and encoded
    page      the self-contained HTML page
    write     all of it, as files

The only input is a `peft_aot.compare.summary.Summary`; nothing here reads records or trains.
"""
