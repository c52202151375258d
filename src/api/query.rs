//! Query strings: every parameter is known, given once (unless it may be repeated), and of its type.

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::IntoParams;

use crate::app::{AppError, reading};
use crate::domain::problem::Problems;

use super::{ApiError, ApiState};

/// Parameters that may be given more than once.
const REPEATABLE: [&str; 1] = ["metadata"];

/// A query string, read only when its turn comes: a thing that is not there is told first.
#[derive(Debug, Clone)]
pub struct Query(Result<Vec<(String, String)>, ()>);

/// A set of query parameters. The same struct is their documentation, so what it does not document
/// is not taken.
pub trait Parameters: Sized {
    /// The names that it knows.
    fn names(names: &mut Vec<String>);

    /// Reads them out of an object of texts.
    ///
    /// # Errors
    /// When a value does not fit.
    fn read(values: &Map<String, Value>) -> Result<Self, AppError>;
}

impl<T: IntoParams + DeserializeOwned> Parameters for T {
    fn names(names: &mut Vec<String>) {
        names.extend(T::into_params(|| None).into_iter().map(|parameter| parameter.name));
    }

    fn read(values: &Map<String, Value>) -> Result<Self, AppError> {
        reading::read(Value::Object(values.clone()))
    }
}

/// Two sets at once, for lists: how to page, and what to filter by.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub B);

impl Default for Query {
    fn default() -> Self {
        Self(Ok(Vec::new()))
    }
}

impl Query {
    /// The query of a request.
    pub fn of(uri: &Uri) -> Self {
        if uri.query().is_none_or(str::is_empty) {
            return Self::default();
        }
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(pairs.map(|axum::extract::Query(pairs)| pairs).map_err(|_| ()))
    }

    /// Reads one set of parameters.
    ///
    /// # Errors
    /// `unknown_field`, `validation_failed`.
    pub fn read<T: Parameters>(self) -> Result<T, ApiError> {
        let mut names = Vec::new();
        T::names(&mut names);
        Ok(T::read(&self.known(&names)?)?)
    }

    /// Reads two sets.
    ///
    /// # Errors
    /// `unknown_field`, `validation_failed`.
    pub fn read_both<A: Parameters, B: Parameters>(self) -> Result<Both<A, B>, ApiError> {
        let mut names = Vec::new();
        A::names(&mut names);
        B::names(&mut names);
        let values = self.known(&names)?;
        Ok(Both(A::read(&values)?, B::read(&values)?))
    }

    /// Makes sure that there is none.
    ///
    /// # Errors
    /// `unknown_field`.
    pub fn nothing(&self) -> Result<(), ApiError> {
        self.clone().known(&[]).map(|_| ()).map_err(ApiError::from)
    }

    fn known(self, names: &[String]) -> Result<Map<String, Value>, AppError> {
        let pairs = self.0.map_err(|()| AppError::invalid("", "the query string is not UTF-8"))?;
        let mut values = Map::new();
        for (name, value) in pairs {
            if !names.contains(&name) {
                return Err(AppError::UnknownParameter(name));
            }
            // No column can hold it, and no id or word has it.
            if value.contains('\0') {
                return Err(AppError::invalid(format!("/{name}"), "must not contain U+0000"));
            }
            let repeatable = REPEATABLE.contains(&name.as_str());
            match (values.get_mut(&name), repeatable) {
                (Some(Value::Array(list)), true) => list.push(Value::String(value)),
                (Some(_), _) => {
                    return Err(AppError::invalid(format!("/{name}"), "must be given once"));
                }
                (None, true) => {
                    values.insert(name, Value::Array(vec![Value::String(value)]));
                }
                (None, false) => {
                    values.insert(name, Value::String(value));
                }
            }
        }
        Ok(values)
    }
}

impl FromRequestParts<ApiState> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        _state: &ApiState,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.uri))
    }
}

/// Reads a parameter's text as `T`.
///
/// # Errors
/// `validation_failed`, with what the parameter must be.
pub fn parse<T: std::str::FromStr>(
    name: &str,
    text: Option<&str>,
    must: &str,
) -> Result<Option<T>, ApiError> {
    text.map(|text| text.parse().map_err(|_| invalid(name, must))).transpose()
}

/// A parameter that has a value that is not allowed.
pub fn invalid(name: &str, must: &str) -> ApiError {
    AppError::Invalid(Problems::one(format!("/{name}"), format!("query parameter {name} {must}")))
        .into()
}
