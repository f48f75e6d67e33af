from sklearn.utils.estimator_checks import parametrize_with_checks

from xent.learn import LogisticRegression, SoftmaxRegression


@parametrize_with_checks([SoftmaxRegression(), LogisticRegression()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)
