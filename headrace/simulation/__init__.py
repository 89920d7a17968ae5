"""A recipe's past, replayed: batch after batch is predicted, compared with the truth, and answered by retraining or not."""
