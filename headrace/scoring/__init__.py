"""Files of rows to predict: recognises their format, reads them in bounded memory, and writes the answers beside the rows."""
